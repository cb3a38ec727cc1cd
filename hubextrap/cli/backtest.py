"""`hubextrap backtest`: every method at every origin of a run, as a table by horizon or as JSON rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubextrap.cli.effect import refuse_idle
from hubextrap.cli.merging import AsJson, Cache, Memory, Quiet, Workers, parse_size
from hubextrap.cli.terminal import cells, tell_json
from hubextrap.foreign_text import as_shown

if TYPE_CHECKING:
    from hubextrap.statistics import Backtest

_WIDTH_OFF_TERMINAL = 160


def backtest(
    ctx: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF|RECIPE|SCAN",
            help="A run as `hubextrap steps` takes it, a recipe (.yaml), or what `hubextrap scan` saved.",
        ),
    ],
    max_step: Annotated[int | None, typer.Option(help="Last step to take of a REF.")] = None,
    memory: Memory = "512MiB",
    workers: Workers = 2,
    cache: Cache = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict what was observed from what came before, by every method: which to use, how far to trust it."""
    from hubextrap import api
    from hubextrap.cli.progress import open_progress
    from hubextrap.cli.scan import is_recipe
    from hubextrap.recipe import load_recipe
    from hubextrap.statistics import Scan
    from hubextrap.trajectory import find_trajectory

    progress = open_progress(quiet)
    path = Path(reference)
    settings = api.ReadingOptions(parse_size(memory), workers, cache)
    if path.is_file():
        refuse_idle(ctx, ("max_step",), "is for a REF; a recipe or a scan says itself which steps it holds")
    if is_recipe(reference):
        recipe = load_recipe(path)
        found = api.backtest(recipe, settings=settings, progress=progress)
    elif path.suffix == ".safetensors" and not path.is_dir():
        found = api.backtest(Scan.load(path), progress=progress)
    else:
        trajectory = find_trajectory(reference, max_step=max_step, progress=progress)
        found = api.backtest(trajectory, settings=settings, progress=progress)
    if as_json:
        tell_json(json.dumps(found.as_rows(), indent=2))
    else:
        _print(reference, found)


def _print(reference: str, found: Backtest) -> None:
    """The table by horizon, and what it comes to."""
    from rich.console import Console
    from rich.table import Table

    from hubextrap.statistics import horizon_classes, horizon_means, pair_counts

    counts = pair_counts(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for heading, count in zip(horizon_classes(found.steps), counts, strict=True):
        table.add_column(f"{heading}: {count}", justify="right")
    for heading in ("worst", "expected", *(["total"] if found.rounded else [])):
        table.add_column(heading, justify="right")
    for entry in horizon_means(found):
        figures = [*entry.means, entry.worst, entry.expected, *([entry.total] if found.rounded else [])]
        table.add_row(*cells(entry.method), *("–" if cell is None else f"{cell:.3f}" for cell in figures))
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_OFF_TERMINAL, highlight=False, markup=False
    )
    console.print(
        as_shown(f"{reference}: {len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}")
        + "\n"
        f"mean relative error{' of the signal' * found.rounded} by horizon, (target − last)/(last − first), "
        "and of how many predictions"
    )
    console.print(table)
    console.print(
        "1 is the last checkpoint as it is: above it, doing nothing is better; expected is what the "
        "checkpoints known at the time let expect"
    )
    for line in _advice(found):
        console.print(as_shown(line))


def _advice(found: Backtest) -> list[str]:
    from hubextrap.statistics import judge
    from hubextrap.trajectory import say_same_weights

    verdict = judge(found)
    lines = [f"warning: {note}" for note in say_same_weights(found.same_weights, len(found.steps))]
    if found.rounded:
        lines.append(
            f"{found.rounding_share:.0%} of what differs between neighbouring checkpoints is rounding to 16 "
            "bits, which no method predicts and scores hardly notice: errors are those of the signal, the "
            "motion along its two leading directions in each tensor; total is the mean of all against the "
            "checkpoints as they are stored, rounding included"
        )
    if verdict.method is None:
        return [*lines, "use none of them: no method beats the last checkpoint on this run's own past"]
    lines.append(f"use {verdict.method}")
    if verdict.reach is None:
        lines.append("trust it little: its mean error is above 0.6 at every horizon")
    else:
        lines.append(
            f"trust it up to step {verdict.reach_step:,.0f}, horizon {verdict.reach:g}: that near, "
            f"{verdict.failures} of {verdict.trials} predictions were worse than doing nothing; farther, "
            "evaluate before any use"
        )
    if verdict.base_step is not None:
        lines.append(f"a line through two checkpoints should begin at step {verdict.base_step}")
    return lines
