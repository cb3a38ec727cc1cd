"""`hubextrap reground`: a trainer's command and a jump in turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubextrap.cli.merging import AsJson, Memory, Quiet, Workers
from hubextrap.cli.terminal import tell, tell_json

if TYPE_CHECKING:
    from hubextrap.api import RegroundResult


def reground(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe with a reground section, such as `hubextrap recipes cp reground_trl` gives.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For all of the run; give it again to go on.")
    ],
    memory: Memory = "512MiB",
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a little with any trainer's command, jump far, and again; a stopped run goes on where it was."""
    from hubextrap import api
    from hubextrap.cli.main import wait_for_others
    from hubextrap.cli.merging import parse_size
    from hubextrap.cli.progress import open_progress
    from hubextrap.recipe import load_reground_recipe

    wait_for_others()
    result = api.reground(
        load_reground_recipe(recipe),
        out,
        settings=api.MergeOptions(parse_size(memory), workers),
        progress=open_progress(quiet),
        output=None if quiet else sys.stderr.buffer,
    )
    if as_json:
        tell_json(json.dumps(result.as_dict(), indent=2))
    else:
        _print(result)


def _print(result: RegroundResult) -> None:
    for number, decision in enumerate(result.decisions, 1):
        action = decision.action.replace("_", " ")
        over = f" over {decision.n_used}" if decision.n_used else ""
        tell(
            f"round {number}: RL step {decision.rl_steps}, {action}{over} to step "
            f"{decision.represented_steps}: {decision.reason}"
        )
    tell(f"finished: {result.reason}")
    tell(f"model: {result.model}")
