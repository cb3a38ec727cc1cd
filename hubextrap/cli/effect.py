"""An option that would have no effect is wrong usage: it is refused, with what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Collection


def refuse_idle(ctx: typer.Context, parameters: Collection[str], why: str) -> None:
    """Refuse any of these options that was given, be it with the value that it has anyway.

    What a run takes (--memory, --workers, --cache), prints (--quiet, --json) or must not ask
    (--no-push-check) always has its effect, also where there is nothing to hold, download or ask.

    Args:
        parameters: names of the command's parameters.
        why: completes "--option …".

    Raises:
        typer.BadParameter: one of them was given.
    """
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if parameter.name in parameters and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} {why}")
