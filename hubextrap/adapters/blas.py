"""The library that numpy multiplies and decomposes matrices with, kept to one thread.

Its own threads split sums, so last bits would depend on how many there are; and they wait in a loop, which
costs more than they bring where threads of ours share the cores out.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator

_entered = Lock()
_inside: list[None] = []
_limits: list[Future[Any]] = []
"""What gives BLAS its threads back, while anybody is inside."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside it, BLAS runs on the thread that calls it. It holds for the whole process, until the last of any
    number of threads has left it."""
    with _entered:
        if not _inside:
            _limits.append(controls().submit(lambda: ThreadpoolController().limit(limits=1, user_api="blas")))
            _limits[0].result()
        _inside.append(None)
    try:
        yield
    finally:
        with _entered:
            _inside.pop()
            if not _inside:
                controls().submit(_limits.pop().result().restore_original_limits).result()


@lru_cache(maxsize=1)
def controls() -> ThreadPoolExecutor:
    """The thread that sets limits: threadpoolctl lets the one that sets them first alone do so again."""
    return ThreadPoolExecutor(1, thread_name_prefix="hubextrap-blas")
