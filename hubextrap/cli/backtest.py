"""`hubextrap backtest`: every method at every origin of a run, as a table by horizon or as JSON rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import Clock, Reading, Said, Selection, Summary, WriteRecipe, grouped
from hubextrap.cli.reference import named_run, named_scan
from hubextrap.cli.terminal import cells, console, tell, tell_json
from hubextrap.foreign_text import as_shown

if TYPE_CHECKING:
    from hubextrap.statistics import Backtest, RunVerdict


@grouped
def backtest(
    ctx: typer.Context,
    reference: str = typer.Argument(
        ...,
        metavar="REF|RECIPE|SCAN",
        help="A run as in `hubextrap steps`, a recipe (.yaml) or a file that `hubextrap scan` saved.",
    ),
    *,
    clock: Clock = None,
    selection: Selection,
    reading: Reading,
    write_recipe: WriteRecipe = None,
    summary: Summary = None,
    said: Said,
) -> None:
    """Test every method on the run's own past, and say which to use and how far to trust it.

    Each method predicts checkpoints that are there already from the ones before them.
    """
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, backtest_markdown
    from hubextrap.statistics import judge_run

    progress = said.progress
    if write_recipe is not None:
        api.check_recipe_place(write_recipe)
    if (scan := named_scan(ctx, reference)) is not None:
        found = api.backtest(scan, clock=clock, progress=progress)
        draft = api.Draft.of_scan(scan)
    else:
        run = named_run(ctx, reference, selection, progress)
        found = api.backtest(run, settings=reading.options(), clock=clock, progress=progress)
        draft = api.Draft.of(run, reference, selection.options(), clock)
    verdict, advised = judge_run(found), api.advised_recipe(found, draft)
    if write_recipe is not None:
        api.save_recipe(advised, verdict, write_recipe)
    if summary is not None:
        append_summary(summary, backtest_markdown(reference, found, verdict))
    if said.as_json:
        text = None if advised is None else advised.text
        tell_json({"verdict": verdict.as_dict(), "recipe": text, "rows": found.as_rows()})
    else:
        print_verdict(verdict)
        _print(reference, found)
        if write_recipe is not None:
            tell(f"recipe written to {write_recipe}; `hubextrap merge {write_recipe} --out DIR` runs it")


def _print(reference: str, found: Backtest) -> None:
    """The table by horizon, and what it comes to."""
    from rich.table import Table

    from hubextrap.statistics import horizon_classes, horizon_means, pair_counts

    counts = pair_counts(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for heading, count in zip(horizon_classes(found), counts, strict=True):
        table.add_column(f"{heading}: {count}", justify="right")
    for heading in ("worst", "expected", *(["total"] if found.rounded else [])):
        table.add_column(heading, justify="right")
    for entry in horizon_means(found):
        figures = [*entry.means, entry.worst, entry.expected, *([entry.total] if found.rounded else [])]
        table.add_row(*cells(entry.method), *("–" if cell is None else f"{cell:.3f}" for cell in figures))
    out = console(160)
    out.print(
        as_shown(f"{reference}: {len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}")
        + "\n"
        f"mean relative error{' of the signal' * found.rounded} by horizon, (target − last)/(last − first), "
        "and of how many predictions"
        + ("" if found.clock.name == "steps" else f"\nclock: {found.clock.in_words()}")
    )
    out.print(table)
    out.print(
        "1 is the last checkpoint as it is: above it, doing nothing is better; expected is what the "
        "checkpoints known at the time let expect"
        + "; total is the mean of all against the checkpoints as they are stored, rounding included"
        * found.rounded
    )


def print_verdict(verdict: RunVerdict) -> None:
    """The headline, and what stands behind it."""
    tell(verdict.line)
    for sentence in verdict.sentences:
        tell(f"  {sentence}")
