"""One pass over tensors: units read and worked on by several threads, handed over one after the other.

While one unit is hashed and handed over, other workers read and compute. Whoever takes the results sees them
in the units' order, so what comes out does not depend on the number of workers, the memory or the source.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from hubextrap.engine.buffer import UnitBuffer
from hubextrap.engine.executors import Turns, executor_for
from hubextrap.engine.units import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hubextrap.engine.budget import Buffers
    from hubextrap.engine.buffer import Inputs
    from hubextrap.engine.inputs import Digests, InputHashes
    from hubextrap.progress import Progress

U = TypeVar("U", bound=Unit)
R = TypeVar("R")


class Consumer(Protocol[U, R]):
    """What a pass is for."""

    title: str
    """What progress calls it."""
    bytes_read: int
    """Of all its units."""

    def units(self) -> Iterable[U]:
        """What is read, in the order in which the results are wanted."""

    def worker(self, buffer: UnitBuffer) -> Callable[[U], R]:
        """What makes a result of each unit that the buffer is filled with; one for each thread."""

    def take(self, unit: U, result: R, digests: Digests) -> None:
        """Take the next unit's result, before its worker's memory is used again.

        Args:
            digests: the hashes of the tensors that end in the unit.
        """


def stream(
    inputs: Inputs,
    consumer: Consumer[U, R],
    hashes: InputHashes,
    buffers: Buffers,
    progress: Progress,
) -> None:
    """Read all units once, and give the consumer what its workers make of them.

    No unit is under way any more when this returns or raises.

    Raises:
        SourceError: bytes could not be read.
        CorruptFile: what was read is not what the Hub lists.
        HubExtrapError: whatever the consumer and its workers raise; the first error counts.
    """
    executor, turns = executor_for(buffers.workers), Turns()
    with (
        one_torch_thread(),
        progress.stage(consumer.title, consumer.bytes_read) as stage,
        ThreadPoolExecutor(buffers.readers or 1, thread_name_prefix="hubextrap-read") as readers,
    ):
        idle: queue.LifoQueue[tuple[UnitBuffer, Callable[[U], R]]] = queue.LifoQueue()
        for _ in range(executor.workers):
            buffer = UnitBuffer(
                inputs,
                buffers.unit_bytes,
                readers=readers if buffers.readers else None,
                advance=stage.advance,
            )
            idle.put((buffer, consumer.worker(buffer)))

        def work(numbered: tuple[int, U]) -> None:
            number, unit = numbered
            buffer, worker = idle.get()
            try:
                buffer.fill(unit)
                result = worker(unit)
                turns.wait(number)
                consumer.take(unit, result, hashes.take(unit, buffer.memory))
                turns.done()
            except BaseException as error:
                turns.fail(error)
                raise
            finally:
                idle.put((buffer, worker))

        deque(executor.map(work, enumerate(consumer.units())), maxlen=0)
        hashes.finish()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """The workers are the parallelism; torch's own threads would only get in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
