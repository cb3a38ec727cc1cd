"""What was made or read last, kept for all threads that want it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo, Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from hubextrap.tensors.virtual import Bytes

    Range: TypeAlias = tuple[str, int, int]
    """A file, the first byte, and how many."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
KEPT = 2**20
"""Bytes of ranges that are kept, the last two aside."""


class Kept(Generic[K, T]):
    """What was made last, each once for all threads that want it, within a number of bytes. Thread-safe.

    Args:
        make: of its key.
        size: bytes of what was made.
        limit: bytes that are kept; the last two are in any case, as threads work on neighbours.
    """

    def __init__(self, make: Callable[[K], T], size: Callable[[T], int], limit: int) -> None:
        self._make, self._size, self._limit = make, size, limit
        self._lock = Lock()
        self._made: OrderedDict[K, Future[T]] = OrderedDict()

    def __call__(self, key: K) -> T:
        """What is made of a key; raises what making it does, and tries it again when asked again."""
        with self._lock:
            there = self._made.get(key)
            future = self._made.setdefault(key, Future())
            self._made.move_to_end(key)
        if there is not None:
            return there.result()
        try:
            future.set_result(self._make(key))
        except BaseException as error:
            with self._lock:
                self._made.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:
            self._drop()
        return future.result()

    def _drop(self) -> None:
        done = {key: self._size(one.result()) for key, one in self._made.items() if one.done()}
        for key in list(done)[:-2]:
            if sum(done.values()) > self._limit:
                del self._made[key], done[key]


class KeepingSource(Source):
    """A source that keeps ranges which neighbouring ones are made with. Thread-safe.

    Args:
        inner: what it reads, which is somebody else's to close.
    """

    def __init__(self, inner: Source) -> None:
        self.name = inner.name
        self._inner = inner
        self._kept: Kept[tuple[Range, ...], tuple[Bytes, ...]] = Kept(
            self._read, lambda parts: sum(map(len, parts)), KEPT
        )

    def files(self) -> Mapping[str, FileInfo]:
        return self._inner.files()

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        self._inner.read(file, offset, buffer)

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        return self._inner.read_file(file, limit)

    def close(self) -> None:
        """Nothing of its own is open."""

    def read_kept(self, *ranges: Range) -> tuple[Bytes, ...]:
        """What lies there, read once for all that ask for it one after the other; not to be changed.

        Raises:
            SourceError: they could not be read.
        """
        return self._kept(ranges)

    def _read(self, ranges: tuple[Range, ...]) -> tuple[Bytes, ...]:
        parts = tuple(np.empty(size, np.uint8) for _, _, size in ranges)
        for (file, offset, _), part in zip(ranges, parts, strict=True):
            self._inner.read(file, offset, part.data)
            part.flags.writeable = False
        return parts
