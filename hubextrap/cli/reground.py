"""`hubextrap reground`: a trainer's command and a jump in turn."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from hubextrap.cli.options import Clock, Limits, OutFolder, Said, grouped
from hubextrap.cli.signals import wait_for_others
from hubextrap.cli.terminal import tell, tell_json


@grouped
def reground(
    recipe: Path = typer.Argument(
        ...,
        metavar="RECIPE",
        help="A recipe with a reground section. `hubextrap recipes cp reground_trl` gives one.",
    ),
    *,
    out: OutFolder,
    clock: Clock = None,
    limits: Limits,
    said: Said,
) -> None:
    """Train a little with your trainer's command, jump ahead, and repeat.

    A stopped run goes on where it was.
    """
    from hubextrap import api
    from hubextrap.recipe import load_reground_recipe

    wait_for_others()
    loaded = load_reground_recipe(recipe).with_clock(clock)
    result = api.reground(
        loaded,
        out,
        settings=limits.merge_options(),
        progress=said.progress,
        output=None if said.quiet else sys.stderr.buffer,
    )
    if said.as_json:
        tell_json(result.as_dict())
        return
    for number, decision in enumerate(result.decisions, 1):
        action = decision.action.replace("_", " ")
        over = f" over {decision.n_used}" if decision.n_used else ""
        tell(
            f"round {number}: RL step {decision.rl_steps}, {action}{over} to step "
            f"{decision.represented_steps}: {decision.reason}"
        )
    tell(f"finished: {result.reason}")
    tell(f"model: {result.model}")
