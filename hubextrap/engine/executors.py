"""Who does the jobs: an executor maps a function over jobs and knows nothing about them."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """Maps a function over jobs, which are started in their order."""

    workers: int
    """Jobs under way at the same time, at most."""

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Results in the order of the jobs, which are drawn as they are needed.

        The first error ends it: no further job is started, and it is raised once those under way have ended.
        """


class SerialExecutor:
    """One job after the other, in this thread."""

    workers = 1

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        return map(function, jobs)


class ThreadExecutor:
    """Jobs in threads of this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="hubextrap") as pool:
            pending: deque[Future[Result]] = deque()
            try:
                for job in jobs:
                    pending.append(pool.submit(function, job))
                    if len(pending) > self.workers:  # one waits; a job is some memory too
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


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
