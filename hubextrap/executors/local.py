"""Units done in this process, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.work.doing import do_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.progress import Progress
    from hubextrap.work.kinds import Work
    from hubextrap.work.places import Place
    from hubextrap.work.records import Record


class LocalExecutor:
    """What `hubextrap worker` is: one process, which retries nothing but what the Hub's client does."""

    name = "local"

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        """As `Executor.run`; an error of a unit ends it."""
        return do_units(plan, units, place, progress)
