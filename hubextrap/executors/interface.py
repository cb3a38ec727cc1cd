"""What an executor is: it has the units of a plan done somewhere, and knows nothing about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place
    from hubextrap.work.records import Record


class Executor(Protocol):
    """Has units done: in any order, more than once, by whoever is there."""

    name: str
    """What messages and ``--executor`` call it."""

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        """Records of the units as each ends, once each, in the order in which they end.

        A unit that has a record in the place already is not done again. One whose worker died, hung or lost
        its network is done again, elsewhere if there is an elsewhere; `RETRIES` times at most.
        Closing the iterator (Ctrl-C does) has what is under way cancelled, and leaves what is done.

        Args:
            plan: which `place` holds.
            units: numbers of the plan's units.
            progress: its stages come to the bytes of the units that have no record yet, each counted once.

        Raises:
            OutputError: a number is no unit's.
            HubExtrapError: what a unit raises that another attempt would meet too (a wrong checkpoint, no
                permission), or that the last attempt met; with the unit's own class, message and attributes.
        """


RETRIES = 3
"""Times that a unit is tried again after its worker was lost."""
