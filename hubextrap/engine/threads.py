"""Reads of a pass in threads of this process: started in their order, and handed over in it."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def in_threads(workers: int, function: Callable[[Unit], Result], units: Iterable[Unit]) -> Iterator[Result]:
    """Results in the order of the units, which are drawn as they are needed.

    The first error ends it: no further unit is started, and it is raised once those under way have ended.

    Args:
        workers: units under way at the same time, at most; with one, all is done in this thread.
    """
    if workers == 1:
        yield from map(function, units)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="hubextrap") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for unit in units:
                pending.append(pool.submit(function, unit))
                if len(pending) > workers:  # one waits; a unit is some memory too
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def for_each(workers: int, work: Callable[[Unit], None], units: Iterable[Unit]) -> None:
    """``work`` on every unit, in any order: whoever is free takes the next, and nothing is handed over.

    The first error ends it, as in `in_threads`.

    Args:
        workers: units under way at the same time, at most; with one, all is done in this thread.
    """
    if workers == 1:
        for unit in units:
            work(unit)
        return
    left, taking, ended = iter(units), threading.Lock(), threading.Event()

    def take() -> Unit:
        with taking:
            return next(left)

    def go_on() -> None:
        try:
            with suppress(StopIteration):
                while not ended.is_set():
                    work(take())
        finally:  # an error ends it for all at once, and not only when this function's caller sees it
            ended.set()

    with ThreadPoolExecutor(workers, thread_name_prefix="hubextrap") as pool:
        going = [pool.submit(go_on) for _ in range(workers)]
        try:
            wait(going, return_when=FIRST_EXCEPTION)
        finally:
            ended.set()
        for one in going:
            one.result()


class Turns:
    """Lets workers pass one after the other, in the order of their numbers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = 0
        self._error: BaseException | None = None

    def wait(self, number: int) -> None:
        """Return when all before ``number`` are done; an error of one of them ends the waiting."""
        with self._condition:
            self._condition.wait_for(lambda: self._next == number or self._error is not None)
            if self._error is not None:
                raise self._error

    def done(self) -> None:
        with self._condition:
            self._next += 1
            self._condition.notify_all()

    def fail(self, error: BaseException) -> None:
        """Wake everybody who waits; the first error is the one that counts."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()
