"""`hubextrap backtest`: every method at every origin of a run, as a table by horizon or as JSON rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import Clock, Reading, Said, Selection, grouped
from hubextrap.cli.reference import named_run, named_scan
from hubextrap.cli.terminal import cells, console, tell_json
from hubextrap.foreign_text import as_shown

if TYPE_CHECKING:
    from hubextrap.statistics import Backtest


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
    said: Said,
) -> None:
    """Test every method on the run's own past, and say which to use and how far to trust it.

    Each method predicts checkpoints that are there already from the ones before them.
    """
    from hubextrap import api

    progress = said.progress
    if (scan := named_scan(ctx, reference)) is not None:
        found = api.backtest(scan, clock=clock, progress=progress)
    else:
        run = named_run(ctx, reference, selection, progress)
        found = api.backtest(run, settings=reading.options(), clock=clock, progress=progress)
    if said.as_json:
        tell_json(found.as_rows())
    else:
        _print(reference, found)


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
    )
    for line in _advice(found):
        out.print(as_shown(line))


def _advice(found: Backtest) -> list[str]:
    from hubextrap.statistics import horizon_means, judge
    from hubextrap.statistics.verdict import TRUSTED, say_unforeseen
    from hubextrap.trajectory import say_same_weights

    verdict = judge(found)
    lines = [f"warning: {note}" for note in say_same_weights(found.same_weights, len(found.steps))]
    lines += say_unforeseen(found.unforeseen)
    if found.rounded:
        lines.append(
            f"{found.rounding_share:.0%} of what differs between neighbouring checkpoints is rounding to 16 "
            "bits, which no method predicts and scores hardly notice: errors are those of the signal, the "
            "motion along its two leading directions in each tensor; total is the mean of all against the "
            "checkpoints as they are stored, rounding included"
        )
    if all(entry.worst is None for entry in horizon_means(found)):
        return [*lines, "nothing could be rehearsed, so no method can be advised; evaluate before any use"]
    if verdict.method is None:
        return [*lines, "use none of them: no method beats the last checkpoint on this run's own past"]
    lines.append(f"use {verdict.method}")
    if verdict.reach is None:
        lines.append(f"trust it little: its mean error is above {TRUSTED:g} at every horizon")
    else:
        lines.append(
            f"trust it up to {verdict.reach_in_words}, horizon {verdict.reach:g}: that near, "
            f"{verdict.failures} of {verdict.trials} predictions were worse than doing nothing; farther, "
            "evaluate before any use"
        )
    if verdict.base_step is not None:
        lines.append(f"a line through two checkpoints should begin at step {verdict.base_step}")
    return lines
