"""Many byte ranges of a source read into their places: neighbours as one, and side by side over a network.

The pieces of a tensor lie in as many files as ranks, and small tensors near each other in all of them. A unit
of a merge over eight ranks must not cost eight round trips one after the other.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.tensors.ranges import coalesce
from hubextrap.tensors.remote import SMALL_IN_FLIGHT, RemoteSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.virtual import Bytes

SCRATCH = 2**19
"""Bytes that are read beside their place at once, in each thread: neighbours, and parts of rows."""
_REMOTE = 256 * 1024, SCRATCH
"""Gap that is read rather than skipped, and most bytes of neighbours that are read as one: a request costs a
round trip."""
_LOCAL = 16 * 1024, 128 * 1024
"""The same on a disk, where a call takes as long as 16 KiB: large ranges are not worth a copy."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bytes in one piece of one file."""

    file: str
    offset: int
    into: Bytes
    """Where they go, row-major; that place need not lie in one piece. At most ``SCRATCH`` if it does not."""


def gather(source: Source, wanted: Iterable[Wanted]) -> None:
    """Read all of them; in no order.

    Raises:
        SourceError: some could not be read; nothing is written any more when this raises.
    """
    by_file: dict[str, list[Wanted]] = {}
    for one in wanted:
        by_file.setdefault(one.file, []).append(one)
    remote = isinstance(source, RemoteSource)
    jobs: list[Callable[[], None]] = []
    for file, those in by_file.items():
        if len(those) == 1:
            jobs.append(_job(source, file, those))
            continue
        spans = coalesce([(one.offset, one.into.size) for one in those], *(_REMOTE if remote else _LOCAL))
        jobs += [_job(source, file, [those[member] for member in span.members]) for span in spans]
    if remote and len(jobs) > 1:
        _side_by_side(jobs)
    else:
        for job in jobs:
            job()


def _job(source: Source, file: str, those: list[Wanted]) -> Callable[[], None]:
    """What reads neighbours, given in file order."""
    first = those[0]

    def read() -> None:
        if len(those) == 1 and first.into.flags.c_contiguous:
            source.read(file, first.offset, first.into.reshape(-1).data)
            return
        size = max(one.offset + one.into.size for one in those) - first.offset
        scratch = np.empty(size, np.uint8)
        source.read(file, first.offset, scratch.data)
        for one in those:
            start = one.offset - first.offset
            one.into[...] = scratch[start : start + one.into.size].reshape(one.into.shape)

    return read


def _side_by_side(jobs: list[Callable[[], None]]) -> None:
    futures = [_pool.submit(job) for job in jobs]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)  # nothing may write into the caller's buffer after this returns
    for future in futures:
        if not future.cancelled():
            future.result()


def _make_pool() -> None:
    """Threads that wait for answers, started when needed; a forked child has none of its parent's."""
    global _pool
    _pool = ThreadPoolExecutor(SMALL_IN_FLIGHT, thread_name_prefix="hubextrap-pieces")


_pool: ThreadPoolExecutor
_make_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_pool)
