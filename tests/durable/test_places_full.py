"""A place on a disk that is full: named, and no fault of the program."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hubextrap.durable.places import lock_folder
from hubextrap.errors import OutputError


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lock_that_the_disk_does_not_take_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    with no_room(), pytest.raises(OutputError, match=r"lock: cannot be written: File too large"):
        lock_folder(tmp_path / "place", "place", said.append)
    assert lock_folder(tmp_path / "place", "place", said.append) > 0  # it was let go
