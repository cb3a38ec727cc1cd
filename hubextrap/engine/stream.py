"""One pass over tensors: units read and worked on by several threads, handed over one after the other.

While one unit is hashed and handed over, other workers read and compute. Whoever takes the results sees them
in the units' order, so what comes out does not depend on the number of workers, the memory or the source.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from hubextrap.compiling import announced
from hubextrap.engine.inputs import check_blamed
from hubextrap.engine.kernels import same_bytes
from hubextrap.engine.threads import Turns, in_threads
from hubextrap.engine.units import Unit
from hubextrap.errors import CheckpointMismatch, NonFinite, SourceError
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor as Pool

    from numpy.typing import NDArray

    from hubextrap.engine.budget import Buffers
    from hubextrap.engine.inputs import Digests, InputHashes
    from hubextrap.engine.units import Piece, Read, Twin
    from hubextrap.progress import Progress, Stage
    from hubextrap.tensors.interfaces import Source

U = TypeVar("U", bound=Unit)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The checkpoints that units number, in step order."""

    steps: tuple[int, ...]
    sources: tuple[Source, ...]

    def called(self, checkpoint: int) -> str:
        """What messages call it."""
        return f"step {self.steps[checkpoint]} ({self.sources[checkpoint].name})"


class UnitBuffer:
    """Memory that is used for one unit after the other, from the start of a page on. Not thread-safe.

    Args:
        size: bytes.
        readers: a pool that reads a unit's ranges at the same time; None reads one after the other.
        advance: told of the bytes as they are read.
    """

    def __init__(
        self,
        inputs: Inputs,
        size: int,
        *,
        readers: Pool | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.inputs = inputs
        self._readers = readers
        self._advance = advance
        self.use(np.frombuffer(mmap.mmap(-1, max(1, size), mmap.MAP_PRIVATE | mmap.MAP_ANON), np.uint8))

    def use(self, array: NDArray[np.uint8]) -> None:
        """Take other memory, such as a device copies from; before anything is read into it."""
        self.array = array
        self.memory = array.data

    def fill(self, unit: Unit) -> None:
        """Read all that the unit needs.

        Raises:
            SourceError: bytes that could not be read.
        """
        if self._readers is None:
            for read in unit.reads:
                self._read(unit, read)
        else:
            list(self._readers.map(lambda read: self._read(unit, read), unit.reads))

    def stored(self, unit: Unit, piece: Piece) -> list[NDArray[np.uint8]]:
        """The bytes of each input of a piece of the unit.

        Raises:
            CheckpointMismatch: a tied copy holds other bytes.
        """
        stored = [
            self.bytes_of(place, piece.count, dtype)
            for place, dtype in zip(piece.places, piece.dtypes, strict=True)
        ]
        for twin in piece.twins:
            copy = self.bytes_of(twin.place, piece.count, piece.dtypes[twin.input])
            if not same_bytes(stored[twin.input], copy):
                raise self._untied(unit, piece, twin)
        return stored

    def bytes_of(self, place: int, count: int, dtype: str) -> NDArray[np.uint8]:
        """``count`` elements of ``dtype`` (safetensors name) from ``place`` on, as uint8."""
        return self.array[place : place + count * DTYPES[dtype].itemsize]

    def _read(self, unit: Unit, read: Read) -> None:
        view = self.memory[read.position : read.position + read.size]
        try:
            self.inputs.sources[read.checkpoint].read(read.file, read.offset, view)
        except SourceError as error:
            tensor, step = unit.pieces[0].tensor, self.inputs.steps[read.checkpoint]
            raise unread(error, read.file, f"step {step}, from tensor {tensor} on", step) from error
        self._advance(read.size)

    def _untied(self, unit: Unit, piece: Piece, twin: Twin) -> CheckpointMismatch:
        checkpoint = piece.checkpoints[twin.input]
        check_blamed(unit, piece, self.inputs.sources, [checkpoint])
        called, step = self.inputs.called(checkpoint), self.inputs.steps[checkpoint]
        return untied(called, piece.tensor, twin.name, step)


def unread(error: SourceError, file: str, what: str, step: int) -> SourceError:
    """The same error, which says ``what`` was read."""
    return SourceError(f"{error} ({what})", file=error.file or file, step=step, repo=error.repo)


def untied(called: str, tensor: str, twin: str, step: int) -> CheckpointMismatch:
    """The error that says that a checkpoint's tied copies differ.

    Args:
        called: what messages call the checkpoint.
    """
    return CheckpointMismatch(
        f"{called}: config.json says that the word embeddings are tied, but {twin} differs from {tensor}; "
        "set tie_word_embeddings to false in the last checkpoint's config.json, or leave this checkpoint out",
        tensor=twin,
        step=step,
    )


def too_far(tensor: str) -> NonFinite:
    """The error about moves whose squares float32 does not hold."""
    return NonFinite(
        f"{tensor}: its weights differ so much that their squares exceed float32; leave out the "
        "checkpoints in which it differs",
        tensor=tensor,
    )


class Consumer(Protocol[U, R]):
    """What a pass is for."""

    title: str
    """What progress calls it."""
    bytes_read: int
    """Of all its units, as they are stored."""
    bytes_taken: int
    """The same, as its workers get them: more, where they are dequantised as they are read."""

    def units(self) -> Iterable[U]:
        """What is read, in the order in which the results are wanted."""

    def worker(self, buffer: UnitBuffer) -> Callable[[U], R]:
        """What makes a result of each unit that the buffer is filled with; one for each thread."""

    def take(self, unit: U, result: R, digests: Digests) -> None:
        """Take the next unit's result, before its worker's memory is used again.

        Args:
            digests: the hashes of the tensors that end in the unit.
        """


class _AsStored:
    """Tells a stage of the bytes that lie in the files, of those that are made of them. Thread-safe."""

    def __init__(self, stage: Stage, consumer: Consumer[Any, Any]) -> None:
        self._stage, self._of = stage, consumer
        self._taken = self._told = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._taken += count
            told = self._taken * self._of.bytes_read // self._of.bytes_taken
            count, self._told = told - self._told, told
            self._stage.advance(count)


def stream(
    inputs: Inputs, consumer: Consumer[U, R], hashes: InputHashes, buffers: Buffers, progress: Progress
) -> None:
    """Read all units once, and give the consumer what its workers make of them.

    No unit is under way any more when this returns or raises.

    Raises:
        SourceError: bytes could not be read.
        CorruptFile: what was read is not what the Hub lists.
        HubExtrapError: whatever the consumer and its workers raise; the first error counts.
    """
    turns = Turns()
    with (
        announced(progress),
        progress.stage(consumer.title, consumer.bytes_read) as stage,
        ThreadPoolExecutor(buffers.readers or 1, thread_name_prefix="hubextrap-read") as readers,
    ):
        same = consumer.bytes_taken == consumer.bytes_read
        advance = (stage if same else _AsStored(stage, consumer)).advance
        idle: queue.LifoQueue[tuple[UnitBuffer, Callable[[U], R]]] = queue.LifoQueue()
        for _ in range(buffers.workers):
            buffer = UnitBuffer(
                inputs,
                buffers.unit_bytes,
                readers=readers if buffers.readers else None,
                advance=advance,
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

        deque(in_threads(buffers.workers, work, enumerate(consumer.units())), maxlen=0)
        hashes.finish()
