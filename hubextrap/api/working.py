"""Units of a plan that lies in a place, done in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.api.finishing import finish, was_finished
from hubextrap.errors import HubExtrapError, ReferenceNotFound
from hubextrap.executors.local import LocalExecutor
from hubextrap.progress import SilentProgress
from hubextrap.work.kinds import load_work
from hubextrap.work.places import open_place
from hubextrap.work.records import Records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hubextrap.progress import Progress


def worker(
    place: Path | str,
    units: Sequence[int] | None = None,
    *,
    finish_if_last: bool = False,
    progress: Progress | None = None,
) -> list[tuple[int, str]]:
    """Do units of a plan, those aside that are done.

    Args:
        place: where the plan lies: a folder, or ``hf://buckets/OWNER/NAME/PATH``.
        units: their numbers; None for all that are not done and need no others'.
        finish_if_last: do the last step too, if no shard is missing then; where another has done it, nothing
            is left to do.

    Returns:
        The number of each unit and what it made.

    Raises:
        ReferenceNotFound: no plan lies there.
        OutputError: a number is no unit's. HubExtrapError: whatever a unit raises.
    """
    progress, where = progress or SilentProgress(), open_place(place)
    try:
        plan = load_work(where)
    except ReferenceNotFound:
        if finish_if_last:
            return []
        raise
    try:
        if units is None:
            known = Records(where, plan.digest).found(plan.free_units)
            units = [unit for unit in plan.free_units if unit not in known or not plan.is_there(known[unit])]
        records = list(LocalExecutor().run(plan, where, units, progress))
    except HubExtrapError as error:
        if not was_finished(plan, where):
            raise
        if finish_if_last:
            return []
        raise ReferenceNotFound(f"{where.name}: the last step was done meanwhile; nothing is left") from error
    made = [(record.unit, plan.labels[record.unit]) for record in records]
    if finish_if_last:
        finish(place, if_last=True, progress=progress)
    return made
