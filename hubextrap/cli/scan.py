"""`hubextrap scan`: one pass over a trajectory, a summary, and a small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import ChatTemplate, Reading, Said, Selection, grouped, names, refuse_idle
from hubextrap.cli.reference import file_name_of, named_run
from hubextrap.cli.sampling import Sampled
from hubextrap.cli.terminal import console, tell, tell_json
from hubextrap.figures import AS_SAMPLED, ONE, said_of_sample, with_stderr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.logits import LogProbRequest
    from hubextrap.scans import Scan
    from hubextrap.statistics import Linearity


_WIDE = 100
"""Columns that hold every figure beside its standard error."""


@dataclass(frozen=True)
class Responses:
    """What is scored under every checkpoint."""

    logprobs: Path | None = typer.Option(
        None,
        metavar="PROMPTS",
        help="Also score responses under every checkpoint. One JSON object per line: prompt, response.",
    )
    sample_from: int | None = typer.Option(
        None, metavar="STEP", help="Take the responses from this checkpoint instead of the file."
    )
    max_new_tokens: int = typer.Option(512, min=1, metavar="N", help="Longest sampled response, in tokens.")
    chat_template: ChatTemplate = False
    batch_size: int = typer.Option(8, min=1, metavar="N", help="Responses per batch.")
    device: str = typer.Option(
        "cpu", metavar="DEVICE", help="Where models run for --logprobs: cpu, cuda, cuda:1, …"
    )

    def request(self, ctx: typer.Context) -> LogProbRequest | None:
        if self.logprobs is None:
            refuse_idle(ctx, set(names(Responses)) - {"logprobs"}, "goes with --logprobs PROMPTS")
            return None
        if self.sample_from is None:
            why = "goes with --sample-from STEP: without it, the file holds the responses"
            refuse_idle(ctx, ("max_new_tokens",), why)
        from hubextrap.logits import LogProbRequest

        return LogProbRequest(
            self.logprobs,
            self.sample_from,
            self.max_new_tokens,
            self.chat_template,
            self.batch_size,
            self.device,
        )


@grouped
def scan(
    ctx: typer.Context,
    reference: str = typer.Argument(
        ..., metavar="REF|RECIPE", help="A run as in `hubextrap steps`, or a recipe (.yaml)."
    ),
    *,
    out: Path | None = typer.Option(
        None, metavar="FILE", help="File to save. Default: NAME.scan.safetensors, after the run."
    ),
    selection: Selection,
    sampled: Sampled,
    reference_share: float | None = typer.Option(
        None,
        metavar="SHARE",
        help="Also measure a random sample of the weights, this share of them. arXiv 2601.04537 uses 0.001.",
    ),
    responses: Responses,
    reading: Reading,
    said: Said,
) -> None:
    """Read every checkpoint of a run once, and say how straight its weights move.

    The file that it saves is small, and holds all that `backtest` and `report` need.
    """
    from hubextrap import api

    request = responses.request(ctx)
    progress = said.progress
    run = named_run(ctx, reference, selection, progress)
    out = out or Path(f"{file_name_of(reference, run)}.scan.safetensors")
    found = api.scan(
        run,
        out=out,
        sample=sampled.choice,
        reference_share=reference_share,
        logprobs=request,
        settings=reading.options(),
        progress=progress,
    )
    if said.as_json:
        tell_json(found.as_dict() | {"file": str(out)})
    else:
        print_scan(reference, found)
        tell(f"saved in {out}")


def print_scan(reference: str, scan: Scan) -> None:
    """The summary, a row for each kind of module."""
    from hubextrap.narrow import NarrowTable
    from hubextrap.scans.logprobs import MIN_CHANGE
    from hubextrap.statistics.linearity import LINEAR, MIN_DISTINCT, MIN_RANGE
    from hubextrap.trajectory import say_same_weights

    header = ("module", "tensors", "weights", "kept", "median R²", f"R² > {LINEAR:g}", "‖last − first‖")
    out = console()
    # a narrow table has the standard error below its figure
    between = " " if out.width >= _WIDE else "\n"
    whole, norms = scan.linearity(), scan.delta_norms()[:, -1] ** 2
    kinds = [*scan.kinds().items(), ("all", [*range(len(scan.tensors))])]
    table = [
        (
            kind,
            str(len(rows)),
            *_cells(scan.linearity(rows), between),
            f"{norms[rows].sum() ** 0.5:.4g}{_norm_margin(scan, rows, between)}",
        )
        for kind, rows in kinds
    ]
    walk = scan.random_walk
    table.append(("a random walk", "", "", "", f"{walk.median:.3f}", f"{walk.share_linear:.3f}", ""))
    if scan.reference is not None:
        from hubextrap.statistics import Linearity

        drawn = Linearity.from_counts(scan.reference.counts.sum(axis=0))
        table.append((f"a sample of {scan.reference.fraction:.3g}", "", *_cells(drawn, between), ""))
    tell(f"{reference}: {len(scan.steps)} checkpoints, steps {scan.steps[0]} to {scan.steps[-1]}")
    out.print(NarrowTable(header, table, "lrrrrrr"))
    tell(
        f"left out: {whole.unmoved:,} weights that did not move, {whole.small_range:,} that moved by "
        f"{MIN_RANGE:g} or less, {whole.few_values:,} with fewer than {MIN_DISTINCT} values"
    )
    if scan.weights is not None:
        tell(*said_of_sample(scan.sampled, ONE))
    elif (drawn_from := scan.sampled_in_words) is not None:
        tell(f"the figures of single weights are estimates {drawn_from}; the norms are exact")
    so_far = "" if scan.weights is None else AS_SAMPLED
    for note in say_same_weights(scan.gram_table.same_weights(), len(scan.steps)):
        tell(f"warning: {so_far}{note}")
    if scan.logprobs is not None:
        row = scan.logprobs.as_dict()
        tell(
            f"log-probs: {row['tokens']:,} tokens of {row['responses']:,} responses, {row['tokens_kept']:,} "
            f"moved by more than {MIN_CHANGE:g}: median R² {with_stderr(row['median_r_squared'], None, 3)}, "
            f"R² > {LINEAR:g} {with_stderr(row['share_r_squared_above_0.7'], None, 3)}"
        )


def _cells(linearity: Linearity, between: str) -> tuple[str, ...]:
    return (
        f"{linearity.elements:,}",
        with_stderr(linearity.share_kept, linearity.share_kept_stderr, 3, between),
        with_stderr(linearity.median, linearity.median_stderr, 3, between),
        with_stderr(linearity.share_linear, linearity.share_linear_stderr, 3, between),
    )


def _norm_margin(scan: Scan, rows: Sequence[int], between: str) -> str:
    """What stands behind how far these tensors moved together."""
    stderrs = scan.delta_norm_stderrs(rows)
    return "" if stderrs is None else f"{between}± {stderrs[-1]:.2g}"
