"""`hubextrap report`: one page that says whether to trust an extrapolation, and its plots."""

from __future__ import annotations

from pathlib import Path

import typer

from hubextrap.cli.options import Clock, Reading, Said, Selection, grouped
from hubextrap.cli.reference import named_run, named_scan
from hubextrap.cli.sampling import Sampled
from hubextrap.cli.terminal import tell, tell_json
from hubextrap.figures import said_of_sample


@grouped
def report(
    ctx: typer.Context,
    reference: str = typer.Argument(
        ...,
        metavar="REF|RECIPE|SCAN",
        help="A run as in `hubextrap steps`, a recipe (.yaml) or a file that `hubextrap scan` saved.",
    ),
    *,
    evaluation: list[Path] = typer.Option(
        [], metavar="RESULTS", help="Scores saved by `hubextrap eval --output`. May be repeated."
    ),
    out: Path = typer.Option(Path("report.html"), help="The page to write."),
    png: Path | None = typer.Option(None, metavar="DIR", help="Also write every plot as a PNG into DIR."),
    clock: Clock = None,
    title: str | None = typer.Option(None, help="Heading of the page, instead of the name of the run."),
    selection: Selection,
    sampled: Sampled,
    reading: Reading,
    said: Said,
) -> None:
    """Write one page on a run: how far to trust a prediction, and what to run next. It opens offline.

    On the page, the target step, the method and the checkpoint to predict from can be changed.
    """
    from hubextrap import api

    progress = said.progress
    scan = named_scan(ctx, reference)
    run = named_run(ctx, reference, selection, progress) if scan is None else scan
    found = api.report(
        run,
        evaluations=evaluation,
        out=out,
        png=png,
        title=title or Path(reference).name,
        clock=clock,
        sample=sampled.choice,
        settings=reading.options() if scan is None else None,
        progress=progress,
    )
    if said.as_json:
        pngs = [str(path) for path in found.pngs]
        sample = {} if found.sampled is None else {"sampled": found.sampled}
        tell_json({"page": str(found.page), "plots": pngs, **sample, "verdict": found.verdict.as_dict()})
        return
    tell(found.verdict.line)
    for sentence in (*found.sentences, *said_of_sample(found.sampled)):
        tell(f"  {sentence}")
    tell(f"wrote {found.page}" + (f" and {len(found.pngs)} plots in {png}" if png else ""))
