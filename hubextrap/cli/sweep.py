"""`hubextrap sweep`: measure a grid of predictions, choose one, and say how good it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from hubextrap.cli.options import Clock, Force, Measuring, OutFolder, Reading, Said, ScanFile, grouped
from hubextrap.cli.terminal import console, tell, tell_json


@grouped
def sweep(
    recipe: Path = typer.Argument(..., metavar="RECIPE", help="A recipe with an evaluate section."),
    *,
    out: OutFolder,
    horizons: str | None = typer.Option(
        None,
        metavar="LIST",
        help="How far to predict, as shares of the observed way, for example 0.25,0.5,1. 1 doubles what was "
        "observed. Default: the recipe's targets.",
    ),
    damping: str | None = typer.Option(
        None,
        metavar="LIST",
        help="How much of the predicted change to apply, for example 0.5,1. 0 is the last checkpoint, 1 the "
        "full prediction. Default: the recipe's damping.",
    ),
    scan: ScanFile = None,
    force: Force = False,
    clock: Clock = None,
    reading: Reading,
    measuring: Measuring,
    said: Said,
) -> None:
    """Evaluate predictions at several horizons and dampings, and choose the best.

    It chooses on one half of the problems and scores the choice on the other half.
    """
    from hubextrap import api
    from hubextrap.evaluation.sweep_report import sweep_rich
    from hubextrap.recipe import load_recipe

    where = measuring.arguments()
    ways, shares = _numbers("--horizons", horizons), _numbers("--damping", damping)
    loaded = load_recipe(recipe)
    result = api.sweep(
        loaded,
        out,
        horizons=ways,
        damping=shares,
        settings=replace(reading.merge_options(), force=force),
        scan=scan,
        clock=clock,
        progress=said.progress,
        **where,
    )
    if said.as_json:
        tell_json(result)
        return
    console().print(sweep_rich(result))
    tell(f"results are in {out}: {', '.join(api.sweep_files(out))}")
    if result.is_better:
        tell(f"merge what was chosen: hubextrap merge {out / 'best.yaml'} --out DIR")


def _numbers(option: str, text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise typer.BadParameter(f"{option} {text}: has to be numbers with commas in between")
    return numbers
