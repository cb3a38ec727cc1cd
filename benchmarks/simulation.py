"""Workers that take equal units from a queue, event by event: how long that takes, and what losses cost.

Pure functions: rates and limits come from whoever calls. GB are 1e9 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

WINDOW = 300.0
"""Seconds of the fixed windows for which the Hub counts requests."""
IN_FLIGHT = 8
"""Range requests of one process at the same time (`hubextrap.tensors.remote`)."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Processor seconds of one core per GB, but for `opening` and `start`."""

    fetch: float
    """Range requests, from the socket to the buffer, without TLS."""
    tls: float
    sha256: float
    xxh3: float
    sums: float
    """Per GB of what is read."""
    write: float
    """Per GB of what is made: its sha256 and the way to the disk."""
    upload: float
    """Per GB of what is made, without TLS."""
    opening: float
    """Processor seconds to find a file and read its header."""
    start: float
    """Seconds until a new worker begins its first unit."""
    other: float = 0.0
    """Per GB of what is read: what the parts leave over of a whole unit's processor seconds."""


@dataclass(frozen=True, slots=True)
class Work:
    """A unit: one shard of the output."""

    read: float
    """GB of all checkpoints together."""
    written: float
    """GB."""
    request: float
    """GB that one range request brings."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker has to itself."""

    cores: int
    card: float
    """GB/s of the network, in each direction: its share, where workers share a card."""
    first_byte: float
    """Seconds from a range request to the first byte of the answer."""


def reading(work: Work, rates: Rates, worker: Worker) -> dict[str, float]:
    """Seconds that one unit takes at least until its last byte is made, by what may bind.

    All that overlaps, so the largest counts.
    """
    one = worker.first_byte + work.request / worker.card
    processor = work.read * (rates.fetch + rates.tls + rates.sha256 + rates.xxh3 + rates.sums + rates.other)
    return {
        "network card": work.read / worker.card,
        "requests in flight": work.read / (IN_FLIGHT * work.request) * one,
        "processor": (processor + work.written * rates.write) / worker.cores,
    }


def uploading(work: Work, rates: Rates, worker: Worker) -> float:
    """Seconds that sending what was made takes, after the last byte of it is known: by one thread."""
    return work.written * max(1 / worker.card, rates.upload + rates.tls)


def unit_seconds(work: Work, rates: Rates, worker: Worker) -> float:
    """Of one unit from its first request to its record."""
    return max(reading(work, rates, worker).values()) + uploading(work, rates, worker)


@dataclass(slots=True)
class Quota:
    """Requests that the Hub grants in each of its windows; who asks for more waits for the next one."""

    limit: int
    _number: int = 0
    """Of the window that the last request granted fell into."""
    _used: int = 0

    def take(self, now: float, count: int) -> float:
        """When the last of ``count`` requests, made from ``now`` on, is granted. First come, first served."""
        if count == 0:
            return now
        if (number := int(now // WINDOW)) > self._number:
            self._number, self._used = number, 0
        later, rest = divmod(self._used + count - 1, self.limit)
        self._number += later
        self._used = rest + 1
        return max(now, self._number * WINDOW)


@dataclass(slots=True)
class Outcome:
    """What became of a queue of units."""

    seconds: float = 0.0
    """Until the last one ended."""
    losses: int = 0
    """Workers that were lost with a unit under way."""
    lost: float = 0.0
    """Seconds of work that were lost with them."""
    waited: float = 0.0
    """Seconds that workers waited for the Hub's quota, all together."""


Asks = Sequence[tuple[Quota, int]]
"""Quotas, and how many requests are taken from each of them."""


@dataclass(slots=True)
class _Queue:
    units: int
    seconds: float
    start: float
    joining: Asks
    asks: Asks
    lifetime: Callable[[], float]
    idle: int = 0
    found: Outcome = field(default_factory=Outcome)
    events: list[tuple[float, int, str, float]] = field(default_factory=list)
    """When, number (what happens at the same time comes in the order in which it was made), what, seconds."""
    made: int = 0

    def at(self, when: float, what: str, worked: float = 0.0) -> None:
        heappush(self.events, (when, self.made, what, worked))
        self.made += 1

    def granted(self, now: float, asks: Asks) -> float:
        when = max([now, *(quota.take(now, count) for quota, count in asks)])
        self.found.waited += when - now
        return when

    def give(self, now: float) -> None:
        """A worker has nothing to do."""
        if not self.units:
            self.idle += 1
            return
        self.units -= 1
        begins = self.granted(now, self.asks)
        life = self.lifetime()
        if life < self.seconds:
            self.at(begins + life, "lost", life)
        else:
            self.at(begins + self.seconds, "done")

    def lose(self, now: float, worked: float) -> None:
        """A worker was lost with a unit."""
        self.found.losses += 1
        self.found.lost += worked
        self.units += 1
        self.at(now + self.start, "there")
        if self.idle:
            self.idle -= 1
            self.give(now)

    def run(self) -> Outcome:
        left = self.units
        while left:
            now, _, what, worked = heappop(self.events)
            if what == "there":
                self.at(self.granted(now, self.joining), "ready")
            elif what == "lost":
                self.lose(now, worked)
            else:
                if what == "done":
                    left -= 1
                    self.found.seconds = now
                self.give(now)
        return self.found


def simulate(
    units: int,
    seconds: float,
    workers: int,
    *,
    begins: float = 0.0,
    start: float = 0.0,
    joining: Asks = (),
    asks: Asks = (),
    lifetime: Callable[[], float] = lambda: math.inf,
) -> Outcome:
    """Have ``units`` units of ``seconds`` each done by ``workers`` workers.

    A unit whose worker is lost goes back to the queue, to whoever is free; another worker takes the place of
    the lost one ``start`` seconds later. Only workers with a unit are lost.

    Args:
        begins: when the workers are started.
        start: seconds from then until a worker takes its first unit.
        joining: what each worker asks for before its first unit.
        asks: what each unit asks for before its first byte.
        lifetime: seconds that a worker has to live, drawn at the beginning of each unit (so with an
            exponential distribution, losses come at a constant rate).
    """
    queue = _Queue(units, seconds, start, joining, asks, lifetime)
    for _ in range(workers):
        queue.at(begins + start, "there")
    return queue.run()
