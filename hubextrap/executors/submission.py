"""What is on record of the jobs that a plan's units were handed to, so that any later process finds them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hubextrap.claims import sealed, unsealed
from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.work.places import Place

SUBMITTED = "submitted.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """The jobs of one plan. JSON values alone, and no secret."""

    executor: str
    """Its name: see `executors.detached.executor_of`."""
    settings: Mapping[str, Any]
    """What that executor is made of again."""
    plan: str
    """The plan's digest."""
    jobs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The units of each job that may still be in the queue, by the name that the queue has for the job."""
    last: str | None = None
    """The job of the last step; None where the caller does that."""
    missing: int = 0
    """How many units were not done when jobs were last submitted."""
    in_vain: int = 0
    """How many times in a row units were submitted again, and no more of them were done than before."""

    @property
    def every_job(self) -> list[str]:
        """The jobs, that of the last step included."""
        return [*self.jobs, *([] if self.last is None else [self.last])]

    def save(self, place: Place) -> None:
        """Note it in the place.

        Raises:
            OutputError: it could not be written.
        """
        place.write(SUBMITTED, json.dumps(sealed(asdict(self)), allow_nan=False).encode() + b"\n")

    @staticmethod
    def forget(place: Place) -> None:
        """Note that no jobs are left.

        Raises:
            OutputError: it could not be written.
        """
        place.write(SUBMITTED, b"")

    @classmethod
    def load(cls, place: Place) -> Submission | None:
        """What was noted last; None where nothing was, or `forget` came after.

        Raises:
            SourceError: it could not be read. CorruptFile: it is not as it was written.
        """
        data = place.read(SUBMITTED)
        if not data:
            return None
        where = f"{place.name}/{SUBMITTED}"
        try:
            stated = unsealed(parse_json(data, where, error=ValueError, remedy="it is damaged"))
            found = cls(**stated)
            jobs = {job: tuple(units) for job, units in found.jobs.items()}
            counts = (found.missing, found.in_vain, *(unit for units in jobs.values() for unit in units))
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("a count is none")
            settings = dict(found.settings)
            if place.anywhere and not (
                found.executor == "jobs" and place.name.startswith(f"hf://buckets/{settings['bucket']}/")
            ):
                raise ValueError("it is of no jobs whose records come here")
            if not all(isinstance(text, str) for text in (found.executor, found.plan, found.last or "")):
                raise ValueError("a name is none")
            return cls(
                found.executor,
                settings,
                found.plan,
                jobs,
                found.last,
                found.missing,
                found.in_vain,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(
                f"{where}: says nothing about jobs ({error}); cancel those that are still in the queue, "
                "remove the file, and submit again",
                file=where,
            ) from error
