"""`hubextrap scan`: one pass over a trajectory, a summary, and a small file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hubextrap.cli.effect import refuse_idle
from hubextrap.cli.merging import Cache, Memory, Quiet, Workers, parse_size
from hubextrap.cli.terminal import cells, tell, tell_json
from hubextrap.foreign_text import as_shown

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.statistics import Linearity, Scan
    from hubextrap.trajectory import Trajectory

_WIDTH_OFF_TERMINAL = 200


def scan(
    ctx: typer.Context,
    reference: str = typer.Argument(
        ..., metavar="REF|RECIPE", help="A run as `hubextrap steps` takes it, or a recipe file (.yaml)."
    ),
    out: Path = typer.Option(Path("scan.safetensors"), help="File to save."),
    pattern: str | None = typer.Option(None, help="How the names are built, e.g. 'step_{step}'."),
    series: str | None = typer.Option(None, help="Which series, where several are there."),
    min_step: int | None = typer.Option(None, help="First step to take."),
    max_step: int | None = typer.Option(None, help="Last step to take."),
    base: str | None = typer.Option(None, help="Reference of the model at step 0."),
    step_scale: float = typer.Option(1.0, help="Steps a unit of the number in the names."),
    sample: float | None = typer.Option(
        None, metavar="SHARE", help="Also draw so many of the weights, as arXiv 2601.04537 does with 0.001."
    ),
    logprobs: Path | None = typer.Option(
        None,
        metavar="PROMPTS",
        help="Also score responses under every checkpoint; one JSON object per line: prompt and response.",
    ),
    sample_from: int | None = typer.Option(
        None, metavar="STEP", help="Let this checkpoint give the responses, instead of the file."
    ),
    max_new_tokens: int = typer.Option(512, min=1, help="Length of a sampled response at most."),
    chat_template: bool = typer.Option(False, "--apply-chat-template", help="Wrap prompts in it."),
    batch_size: int = typer.Option(8, min=1, help="Responses at a time."),
    device: str = typer.Option("cpu", help="Where models run for --logprobs: cpu, cuda, cuda:1, …"),
    memory: Memory = "512MiB",
    workers: Workers = 2,
    cache: Cache = False,
    quiet: Quiet = False,
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Read every checkpoint of a run once: how straight its weights move, and all that backtests need."""
    from hubextrap import api
    from hubextrap.cli.progress import open_progress
    from hubextrap.statistics import LogProbRequest

    if logprobs is None:
        about_logprobs = ("sample_from", "max_new_tokens", "chat_template", "batch_size", "device")
        refuse_idle(ctx, about_logprobs, "goes with --logprobs PROMPTS")
    if sample_from is None:
        refuse_idle(
            ctx, ("max_new_tokens",), "goes with --sample-from STEP: without it, the file holds the responses"
        )
    progress = open_progress(quiet)
    selection = {
        "pattern": pattern,
        "series": series,
        "min_step": min_step,
        "max_step": max_step,
        "base": base,
        "step_scale": step_scale,
    }
    if is_recipe(reference):
        refuse_idle(ctx, selection, f"is for a REF; the recipe {reference} says which steps to take")
    found = api.scan(
        _trajectory(reference, selection, progress),
        out=out,
        sample=sample,
        logprobs=None
        if logprobs is None
        else LogProbRequest(logprobs, sample_from, max_new_tokens, chat_template, batch_size, device),
        settings=api.ReadingOptions(parse_size(memory), workers, cache),
        progress=progress,
    )
    if as_json:
        tell_json(json.dumps(found.as_dict() | {"file": str(out)}, indent=2))
    else:
        print_scan(reference, found)
        tell(f"saved in {out}")


def is_recipe(reference: str) -> bool:
    """Whether REF|RECIPE is a recipe's file."""
    return Path(reference).suffix in (".yaml", ".yml") and Path(reference).is_file()


def _trajectory(reference: str, selection: dict[str, Any], progress: Progress) -> Trajectory | Recipe:
    from hubextrap.recipe import load_recipe
    from hubextrap.trajectory import find_trajectory

    if is_recipe(reference):
        return load_recipe(Path(reference))
    return find_trajectory(reference, progress=progress, **selection)


def print_scan(reference: str, scan: Scan) -> None:
    """The summary, a row for each kind of module."""
    from rich.console import Console
    from rich.table import Table

    from hubextrap.trajectory import say_same_weights

    table = Table(box=None, pad_edge=False)
    table.add_column("module", overflow="fold")
    for heading in ("tensors", "weights", "kept", "median R²", "R² > 0.7", "‖last − first‖"):
        table.add_column(heading, justify="right")
    norms = scan.delta_norms()[:, -1] ** 2
    for kind, rows in scan.kinds().items():
        table.add_row(
            *cells(kind), str(len(rows)), *_cells(scan.linearity(rows)), f"{norms[rows].sum() ** 0.5:.4g}"
        )
    whole = scan.linearity()
    table.add_row("all", str(len(scan.tensors)), *_cells(whole), f"{norms.sum() ** 0.5:.4g}")
    walk = scan.random_walk
    table.add_row("a random walk", "", "", "", f"{walk.median:.3f}", f"{walk.share_linear:.3f}", "")
    if scan.sample is not None:
        from hubextrap.statistics import Linearity

        drawn = Linearity.from_counts(scan.sample.counts.sum(axis=0))
        table.add_row(f"a sample of {scan.sample.fraction:.3g}", "", *_cells(drawn), "")
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_OFF_TERMINAL, highlight=False, markup=False
    )
    about = f"{reference}: {len(scan.steps)} checkpoints, steps {scan.steps[0]} to {scan.steps[-1]}"
    console.print(as_shown(about))
    console.print(table)
    console.print(
        f"left out: {whole.unmoved:,} weights that did not move, {whole.small_range:,} that moved by 1e-4 or "
        f"less, {whole.few_values:,} with fewer than 4 values"
    )
    for note in say_same_weights(scan.gram_table.same_weights(), len(scan.steps)):
        console.print(as_shown(f"warning: {note}"), soft_wrap=True)
    if scan.logprobs is not None:
        row = scan.logprobs.as_dict()
        console.print(
            f"log-probs: {row['tokens']:,} tokens of {row['responses']:,} responses, {row['tokens_kept']:,} "
            f"moved by more than 0.2: median R² {_figure(row['median_r_squared'])}, R² > 0.7 "
            f"{_figure(row['share_r_squared_above_0.7'])}"
        )


def _cells(linearity: Linearity) -> tuple[str, ...]:
    return (
        f"{linearity.elements:,}",
        f"{linearity.share_kept:.3f}",
        _figure(linearity.median),
        _figure(linearity.share_linear),
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
