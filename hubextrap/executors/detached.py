"""The executor that units were handed to while nobody waits, made again from what is on record of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
from hubextrap.lazy import by_name

if TYPE_CHECKING:
    from hubextrap.executors.submission import Submission
    from hubextrap.executors.watching import Watching

DETACHED = {
    "slurm": "hubextrap.executors.slurm:SlurmExecutor",
    "jobs": "hubextrap.executors.jobs:JobsExecutor",
}
"""Each is imported when it is asked for."""


def executor_of(submission: Submission) -> Watching:
    """An executor equal to the one that submitted.

    Raises:
        CorruptFile: there is none of that name, or not with these settings.
        HubExtrapError: as the executor's class raises of its settings.
    """
    try:
        if submission.executor in DETACHED:
            found: Watching = by_name(DETACHED[submission.executor])(**submission.settings)
            return found
    except TypeError as error:
        what = f"settings of {submission.executor} that are none ({error})"
    else:
        what = f"executor {submission.executor!r}, which is not one of {', '.join(DETACHED)}"
    raise CorruptFile(
        f"submitted.json: states {what}; cancel what is still in the queue, remove the file, and submit "
        "again",
        file="submitted.json",
    )
