"""The lock of a run that starts commands: held by the run, and by each command's guardian until that ends."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hubextrap.durable.places import holder_of, lock_folder
from hubextrap.errors import OutputError
from hubextrap.regrounding.guardian import GRACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hubextrap.progress import Progress


@contextmanager
def held_run(folder: Path, what: str, progress: Progress) -> Iterator[int]:
    """Hold the run's lock: its descriptor. A command of a run that was killed may take a moment to end.

    Raises:
        OutputError: another run holds it, or the folder cannot be made.
    """
    deadline = time.monotonic() + GRACE + 5
    told = False
    while True:
        try:
            lock = lock_folder(folder, what, progress.say)
            break
        except OutputError:
            if not _holder_is_dead(folder / "lock") or time.monotonic() > deadline:
                raise
        if not told:
            progress.say(f"{what}: waiting for the command of a run that was killed to end")
            told = True
        time.sleep(0.1)
    try:
        yield lock
    finally:
        os.close(lock)


def _holder_is_dead(path: Path) -> bool:
    """Whether the process that took the lock is gone, so that only a guardian it started still holds it."""
    try:
        if (holder := holder_of(path)) is not None:
            os.kill(holder, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
