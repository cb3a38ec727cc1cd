"""Units done in this process: whoever else does them too, and however often, their results are the same."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, OutputError
from hubextrap.patience import is_passing
from hubextrap.progress import SilentProgress
from hubextrap.work.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place


def do_units(
    plan: Work, units: Sequence[int], place: Place | None = None, progress: Progress | None = None
) -> Iterator[Record]:
    """Do units one after the other; yields the record of each once it is in the place.

    What is on record there is not done again. An error that another attempt would meet too is put on record.

    Args:
        place: where records lie; None for those who keep them themselves, with units that `needs` no others'.

    Raises:
        OutputError: a number is no unit's.
        HubExtrapError: whatever a unit raises; `may_pass` says whether another attempt may go well.
    """
    plan.check_units(units)
    with Worker(plan, progress) as worker:
        for unit in units:
            yield worker.do(unit, place)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may go well: of a network or a Hub that was away, not of a wrong checkpoint."""
    from huggingface_hub.errors import HfHubHTTPError

    seen: BaseException | None = error
    while seen is not None:
        if is_passing(seen):
            return True
        if isinstance(seen, HfHubHTTPError):  # an answer: what caused it is the HTTP library's view of it
            return False
        seen = seen.__cause__
    return False


class Worker:
    """A process at work on a plan: its sources stay open from one unit to the next. A context manager."""

    def __init__(self, plan: Work, progress: Progress | None = None) -> None:
        self.plan = plan
        self._hands = plan.hands(progress or SilentProgress())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._hands.close()

    def do(
        self, unit: int, place: Place | None = None, records: Mapping[int, Record] | None = None
    ) -> Record:
        """Do one unit, unless it is on record in the place and there, and put it on record.

        Args:
            records: those that the unit needs, instead of the place's.

        Raises:
            HubExtrapError: as `do_units`.
        """
        kept = None if place is None else Records(place, self.plan.digest)
        if kept is not None and (known := kept.get(unit)) is not None and self.plan.is_there(known):
            return known
        try:
            given = records if records is not None else _needed(self.plan, unit, kept)
            record = Record(unit, self.plan.digest, self._hands.do(unit, given))
            if kept is not None:
                kept.put(record)
        except HubExtrapError as error:
            if kept is not None and not may_pass(error):
                with suppress(HubExtrapError):  # the unit's own error is the one to be told
                    kept.fail(unit, error)
            raise
        return record


def _needed(plan: Work, unit: int, kept: Records | None) -> dict[int, Record]:
    found = {}
    for needed in plan.needs(unit):
        record = None if kept is None else kept.get(needed)
        if record is None:
            raise OutputError(
                f"{plan.labels[unit]}: is compared once {plan.labels[needed]} is done, and that is not on "
                f"record; do unit {needed} first"
            )
        found[needed] = record
    return found
