"""`hubextrap backtest`: every method at every origin of a run, as a table by horizon or as JSON rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import Clock, Reading, Said, Selection, Summary, WriteRecipe, grouped
from hubextrap.cli.reference import named_run, named_scan
from hubextrap.cli.sampling import Sampled
from hubextrap.cli.terminal import as_argument, console, tell, tell_json

if TYPE_CHECKING:
    from hubextrap.statistics import Backtest, RunVerdict


_WIDE = 140
"""Columns that hold every figure beside its standard error."""


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
    sampled: Sampled,
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
        how = reading.options()
        found = api.backtest(run, settings=how, sample=sampled.choice, clock=clock, progress=progress)
        draft = replace(api.Draft.of(run, reference, selection.options(), clock), sample=sampled.size)
    verdict, advised = judge_run(found), api.advised_recipe(found, draft)
    if write_recipe is not None:
        api.save_recipe(advised, verdict, write_recipe)
    if summary is not None:
        append_summary(summary, backtest_markdown(reference, found, verdict))
    if said.as_json:
        text = None if advised is None else advised.text
        sample = {} if found.sampled is None else {"sampled": found.sampled}
        tell_json({"verdict": verdict.as_dict(), "recipe": text, **sample, "rows": found.as_rows()})
    else:
        print_verdict(verdict)
        _print(reference, found)
        if write_recipe is not None:
            command = f"hubextrap merge {as_argument(write_recipe)} --out DIR"
            tell(f"recipe written to {write_recipe}; `{command}` runs it")


def _print(reference: str, found: Backtest) -> None:
    """The table by horizon, what its columns are, and how a recipe writes its methods."""
    from hubextrap.figures import with_stderr
    from hubextrap.narrow import NarrowTable
    from hubextrap.statistics import backtest_view, plain_name

    out = console(160)
    # a narrow table has the standard error below its figure
    between = " " if out.width >= _WIDE else "\n"
    classes = backtest_view.classes(found)
    header = [
        "method",
        *(f"{end}\nof {count}" for end, _, count in classes),
        *backtest_view.further_headings(found),
    ]
    rows = [
        [plain_name(name), *(with_stderr(*figure, digits=3, between=between) for figure in figures)]
        for name, figures in backtest_view.rows(found)
    ]
    tell("")
    tell(f"{reference}: {len(found.steps)} checkpoints, steps {found.steps[0]} to {found.steps[-1]}")
    tell(f"{backtest_view.title(found)}; 'of 5': a mean of 5 predictions")
    tell("horizon: " + ", ".join(f"{end.removeprefix('to ')} is {step}" for end, step, _ in classes if step))
    if found.clock.name != "steps":
        tell(f"clock: {found.clock.in_words()}")
    out.print(NarrowTable(header, rows, "l" + "r" * len(header[1:])))
    for note in backtest_view.notes(found):
        tell(note)
    tell("To use one, write it into a recipe:")
    for name, _ in backtest_view.rows(found):
        _tell_recipe(name)
    if found.sampled is not None:
        fit = f"fit: {{sample: {found.sampled}}}"
        tell(f"With {fit} under its parameters, a method that is fitted to weights is fitted to this sample;")
        tell("without it, to all weights.")


def _tell_recipe(name: str) -> None:
    """The lines to copy into a recipe, its plain name behind them as a comment."""
    from hubextrap.statistics import as_recipe, plain_name

    for place, line in enumerate(as_recipe(name)):
        tell(f"  {line:<30}  # {plain_name(name)}" if place == 0 else f"  {line}")


def print_verdict(verdict: RunVerdict) -> None:
    """The headline, and what stands behind it."""
    tell(verdict.line)
    for sentence in verdict.sentences:
        tell(f"  {sentence}")
