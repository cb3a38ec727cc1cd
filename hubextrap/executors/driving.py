"""What is left to do for whoever has units done by an executor: the plan to its place, the records back."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from hubextrap.errors import HubExtrapError, OutputError
from hubextrap.work.records import Records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.executors.interface import Executor
    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place
    from hubextrap.work.records import Record

W = TypeVar("W", bound="Work")


def placed(work: W, place: Place) -> tuple[W, dict[int, Record]]:
    """A plan in its place, and the records of its units that an earlier run has left there.

    An earlier plan with the same results in the same place stays, so that its records count on.
    """
    earlier = earlier_plan(work, place)
    if earlier is None:
        place.remove()
        return work.save(place), {}
    kept = Records(place, earlier.digest)
    records = kept.found()
    there = {unit: record for unit, record in records.items() if earlier.is_there(record)}
    if len(there) < len(records) or kept.failed():
        place.remove()
        earlier.save(place)
        for record in there.values():
            kept.put(record)
    return earlier, there


def do_all(
    work: Work, place: Place, executor: Executor, records: Mapping[int, Record], progress: Progress
) -> dict[int, Record]:
    """Have all units done that are not on record: those that need no others', then the rest."""
    found = dict(records)
    for units in (work.free_units, work.compare_units):
        todo = [unit for unit in units if unit not in found]
        if todo:
            found |= {record.unit: record for record in executor.run(work, place, todo, progress)}
            missing = [work.labels[unit] for unit in todo if unit not in found]
            if missing:
                raise OutputError(
                    f"{executor.name}: no record came of {', '.join(missing[:5])}; run it again"
                )
    return found


def earlier_plan(work: W, place: Place) -> W | None:
    """The plan that lies in a place, if it has the same results."""
    try:
        found = type(work).load(place)
    except HubExtrapError:
        return None
    return found if work.same_results(found) else None
