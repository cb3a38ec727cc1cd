"""`hubextrap worker` and `finish`: units of a plan that was submitted, and the last step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hubextrap.cli.options import Said, Summary, grouped
from hubextrap.cli.terminal import tell, tell_json

if TYPE_CHECKING:
    from collections.abc import Iterator

PlanPlace = typer.Argument(
    ...,
    metavar="PLACE",
    help="Where the plan is: what `hubextrap submit` prints after `finish`, a folder or hf://buckets/…",
)


@grouped
def worker(
    place: str = PlanPlace,
    units: list[int] | None = typer.Argument(
        None, metavar="UNIT…", help="Numbers of units to do, from 0. Default: all that are not done.", min=0
    ),
    *,
    last: bool = typer.Option(
        False, "--finish", help="Do the last step too, if no shard is missing after these units."
    ),
    said: Said,
) -> None:
    """Make shards of a plan. Slurm and HF Jobs run this; you can help them with it.

    Exit code 75: another attempt may go well, as after a lost network.
    """
    from hubextrap import api

    with _another_attempt():
        done = api.worker(place, units or None, finish_if_last=last, progress=said.progress)
    if said.as_json:
        tell_json([{"unit": unit, "file": file} for unit, file in done])
    else:
        tell(f"{len(done)} units done")


@grouped
def finish(
    place: str = PlanPlace,
    *,
    wait: bool = typer.Option(False, "--wait", help="Wait until all shards are made, or no job is left."),
    summary: Summary = None,
    said: Said,
) -> None:
    """Do the last step of submitted work: name the folder, or make the one commit.

    Exit code 75: another attempt may go well, as after a lost network.
    """
    from hubextrap import api
    from hubextrap.cli.markdown import append_summary, predictions_markdown
    from hubextrap.cli.summaries import prediction_as_json, print_prediction

    with _another_attempt():
        result = api.finish(place, wait=wait, progress=said.progress)
    predictions = () if result is None else result.predictions
    if summary is not None:
        append_summary(summary, predictions_markdown(predictions))
    if said.as_json:
        tell_json([prediction_as_json(prediction) for prediction in predictions])
        return
    for prediction in predictions:
        print_prediction(prediction)


@contextmanager
def _another_attempt() -> Iterator[None]:
    """An error that another attempt may not meet has an exit code of its own."""
    from hubextrap.errors import HubExtrapError, MayPass
    from hubextrap.foreign_text import own_lines
    from hubextrap.work.doing import may_pass

    try:
        yield
    except HubExtrapError as error:
        if may_pass(error):
            raise MayPass(own_lines(*str(error).split("\n"))) from error
        raise
