"""`hubextrap watch`: follow a run that is still training."""

from __future__ import annotations

import re
import sys

import typer

from hubextrap.cli.options import OutFolder, Reading, Said, Selection, Summary, grouped, names, refuse_idle
from hubextrap.cli.sampling import Sampled
from hubextrap.cli.signals import wait_for_others
from hubextrap.cli.terminal import tell_json

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def check_every(text: str | None) -> str | None:
    """See that it is a time while the command line is read.

    Raises:
        typer.BadParameter: it is none.
    """
    if text is not None:
        parse_time(text)
    return text


def parse_time(text: str) -> float:
    """Seconds of ``30s``, ``5min``, ``2h`` or ``1d``; a bare number is seconds.

    Raises:
        typer.BadParameter: it is no such time, or not from a second to a week.
    """
    found = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)\s?(s|min|h|d)?", text.strip())
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not 1 <= seconds <= 7 * _SECONDS["d"]:
        raise typer.BadParameter(f"{text!r}: has to be a time from 1s to 7d; write it like 30s, 5min or 2h")
    return seconds


@grouped
def watch(
    ctx: typer.Context,
    reference: str = typer.Argument(
        ...,
        metavar="REF|RECIPE",
        help="A run as in `hubextrap steps`, of which a page is kept, or a recipe (.yaml) with a watch "
        "section, which says what else to do. `hubextrap recipes cp watch` gives one.",
    ),
    *,
    out: OutFolder,
    once: bool = typer.Option(False, "--once", help="Look once, do what is due, and end: for cron and CI."),
    every: str | None = typer.Option(
        None,
        callback=check_every,
        metavar="TIME",
        help="Time between two looks, for example 30s or 5min. It grows while nothing happens. Default: 60s.",
    ),
    selection: Selection,
    sampled: Sampled,
    reading: Reading,
    summary: Summary = None,
    said: Said,
) -> None:
    """Follow a run that is still training: judge each new checkpoint, predict from it, keep a page.

    The page also says how earlier predictions turned out. A stopped watch goes on where it was.
    """
    if once:
        refuse_idle(ctx, ("every",), "has no effect with --once, which looks once")
    from hubextrap.given import names_recipe

    of_recipe = names_recipe(reference)
    if of_recipe:
        why = f"is for a REF; the recipe {reference} says which steps to take"
        refuse_idle(ctx, names(Selection), why)
    from hubextrap import api
    from hubextrap.cli.hindsight import hindsight_markdown, print_look
    from hubextrap.given import watch_recipe_of
    from hubextrap.polling import EVERY

    recipe = watch_recipe_of(reference, None if of_recipe else selection.options())
    if recipe.watch.command is not None:
        wait_for_others()
    looks = api.watch(
        recipe,
        out,
        every=None if once else EVERY if every is None else parse_time(every),
        sample=sampled.choice,
        settings=reading.merge_options(),
        progress=said.progress,
        output=None if said.quiet else sys.stderr.buffer,
    )
    for look in looks:
        if summary is not None and (look.steps or look.said):
            from hubextrap.cli.markdown import append_summary

            append_summary(summary, hindsight_markdown(reference, look))
        if said.as_json:
            tell_json(look.as_dict())
        else:
            print_look(reference, look)
