"""One pass over all checkpoints of a trajectory: Gram matrices, and statistics of every single weight.

The same jobs and buffers as a merge, without an output. Tensors are cut at multiples of a block, so a block's
figures do not depend on memory or threads, and they are added up in the order of the blocks.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import torch

from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS
from hubextrap.engine.executors import SerialExecutor, ThreadExecutor, Turns
from hubextrap.engine.inputs import InputHashes, check_blamed, file_uses
from hubextrap.engine.jobs import cut_jobs
from hubextrap.engine.kernels import count_non_finite, torch_dtype
from hubextrap.engine.plan import REMOTE_READERS
from hubextrap.engine.reading import JobBuffer
from hubextrap.engine.run import one_torch_thread
from hubextrap.engine.scan_plan import READ_AS, piece_bytes_of, plan_scan
from hubextrap.errors import NonFinite, StepError
from hubextrap.progress import Progress, SilentProgress
from hubextrap.statistics.elements import BLOCK, BlockScanner
from hubextrap.statistics.linearity import BINS, count_linearity, random_walk
from hubextrap.statistics.scan import EXAMPLES, Sample, Scan, ScannedCheckpoint
from hubextrap.statistics.table import GramTable
from hubextrap.statistics.tensor_scan import TensorScan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor as Pool

    from numpy.typing import NDArray

    from hubextrap.engine.jobs import Job, Piece
    from hubextrap.engine.plan import MergePlan, TensorPlan
    from hubextrap.statistics.tensor_scan import ScanJournal
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Trajectory

LEAST_SAMPLE = 50
"""Weights that the reference protocol draws from a tensor at least."""


def scan_trajectory(
    trajectory: Trajectory,
    sources: Sequence[Source],
    layouts: Sequence[CheckpointLayout],
    *,
    tied: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = DEFAULT_WORKERS,
    remote: bool = False,
    read_size: int | None = None,
    afterwards: int = 0,
    sample: float | None = None,
    pins: Sequence[str] | None = None,
    journal: ScanJournal | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Scan K checkpoints, each byte read once. The result depends on the checkpoints and ``sample`` alone.

    Integer tensors are left out; a tied pair counts once. Weights are compared as float32: F64 is rounded.

    Args:
        sources: one a checkpoint, in step order.
        layouts: what they hold.
        tied: the last checkpoint's tie_word_embeddings.
        memory: bytes that the process may take, python, torch and numba included.
        workers: threads, each with a buffer of its own.
        remote: whether some of it is read from a Hub: in longer ranges, several at a time.
        read_size: bytes to read from a checkpoint at once, if memory allows; by default what suits the place.
        afterwards: bytes that what is done with the result takes beside it.
        sample: share of each tensor's weights to draw for the reference protocol, which takes 0.001.
        pins: what stands for each checkpoint's bytes; by default its commit or folder.
        journal: where finished tensors are kept, so that a scan that was stopped can go on.

    Raises:
        StepError: fewer than two checkpoints.
        CheckpointMismatch: names, shapes, dtypes or tying differ.
        NonFinite: a checkpoint holds NaN or infinity.
        SourceError: bytes could not be read.
        OutputError: memory is too small.
    """
    steps = trajectory.steps
    if len(steps) < 2:
        raise StepError(f"a scan compares checkpoints, and only step {steps[0]} is there; choose more steps")
    progress = progress or SilentProgress()
    plan = plan_scan(
        steps,
        layouts,
        tied=tied,
        memory=memory,
        workers=workers,
        remote=remote,
        read_size=read_size,
        afterwards=afterwards,
    )
    for note in plan.notes:
        progress.say(note)
    floats = [tensor for shard in plan.shards for tensor in shard.tensors if tensor.combinations]
    sizes = {tensor.name: tensor.elements for tensor in floats}
    done = {
        name: found
        for name, found in (journal.finished.items() if journal else ())
        if sizes.get(name) == found.elements and len(found.gram) == len(steps)
    }
    readers = REMOTE_READERS if remote else 0
    for found in _scan_tensors(plan, sources, done, sample, readers, progress):
        done[found.name] = found
        if journal:
            journal.record(found)
    return _assemble(trajectory, layouts, [done[tensor.name] for tensor in floats], sample, pins)


@dataclass(slots=True)
class _Part:
    """What a worker found in one piece of a tensor."""

    piece: Piece
    grams: NDArray[np.float64]
    """(blocks, K, K)."""
    counts: NDArray[np.int64]
    sample_counts: NDArray[np.int64]
    examples: list[tuple[int, NDArray[np.float32]]]
    """Which example, and its (K,) values."""
    inputs: tuple[str, ...] = ()
    """Of the last part of a tensor: a hash of what was read of each checkpoint."""


def _scan_tensors(
    plan: MergePlan,
    sources: Sequence[Source],
    done: dict[str, TensorScan],
    sample: float | None,
    readers: int,
    progress: Progress,
) -> Iterator[TensorScan]:
    """Every float tensor that is not done, in order, as it is finished."""
    floats = [
        replace(shard, tensors=tuple(tensor for tensor in shard.tensors if tensor.combinations))
        for shard in plan.shards
    ]
    shards, begun = (
        [
            replace(shard, tensors=tuple(one for one in shard.tensors if (one.name in done) == is_done))
            for shard in floats
        ]
        for is_done in (False, True)
    )
    total = sum(shard.bytes_read for shard in shards)
    executor = ThreadExecutor(plan.workers) if plan.workers > 1 else SerialExecutor()
    with (
        one_torch_thread(),
        progress.stage("scan", total) as stage,
        ThreadPoolExecutor(readers or 1, thread_name_prefix="hubextrap-read") as pool,
        ExitStack() as resources,
    ):
        uses, read = file_uses(plan, floats), file_uses(plan, begun)
        hashes = resources.enter_context(closing(InputHashes(plan, sources, uses, begun=read, keep=True)))
        for tensor in (one for shard in begun for one in shard.tensors if one.elements):
            hashes.expect(tensor, done[tensor.name].inputs)
        turns = Turns()
        idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(plan.workers):
            idle.put(_Worker(plan, sources, sample, pool if readers else None, stage.advance))

        def work(numbered: tuple[int, Job]) -> list[_Part]:
            number, job = numbered
            worker = idle.get()
            try:
                parts = worker.do(job)
                turns.wait(number)
                hashes.take(job, worker.memory)
                for part in parts:
                    if part.piece.ends_tensor:
                        part.inputs = hashes.digests_of(part.piece.tensor)
                turns.done()
            except BaseException as error:
                turns.fail(error)
                raise
            finally:
                idle.put(worker)
            return parts

        for shard in shards:
            for tensor in shard.tensors:
                if not tensor.elements:
                    yield TensorScan.empty(tensor.name, 0, len(plan.steps), EXAMPLES)
        jobs = (
            job
            for shard in shards
            if any(tensor.elements for tensor in shard.tensors)
            for job in cut_jobs(shard, 0, plan.job_bytes, BLOCK, piece_bytes_of(len(plan.steps)))
        )
        current: TensorScan | None = None
        for parts in executor.map(work, enumerate(jobs)):
            for part in parts:
                tensor = part.piece.tensor
                if current is None:
                    current = TensorScan.empty(tensor.name, tensor.elements, len(plan.steps), EXAMPLES)
                    places = example_places(tensor)
                    current.example_places[: len(places)] = places
                for gram in part.grams:  # one after the other: their order decides the last bits
                    current.gram[...] += gram
                current.counts[...] += part.counts
                current.sample_counts[...] += part.sample_counts
                for number, values in part.examples:
                    current.example_values[number] = values
                if part.piece.ends_tensor:
                    yield replace(current, inputs=part.inputs)
                    current = None
        hashes.finish()


class _Worker:
    """A buffer and scratch memory, used for one job after the other. Not thread-safe."""

    def __init__(
        self,
        plan: MergePlan,
        sources: Sequence[Source],
        sample: float | None,
        readers: Pool | None,
        advance: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._sample = sample
        self._buffer = JobBuffer(plan, sources, plan.job_bytes, readers=readers, advance=advance)
        self._scanner = BlockScanner(plan.steps)
        self._converted = np.zeros((0, 0), np.float32)

    @property
    def memory(self) -> memoryview:
        """What the last job read, at the places that its pieces name."""
        return self._buffer.memory

    def do(self, job: Job) -> list[_Part]:
        """Read what the job needs and scan its pieces.

        Raises:
            SourceError, CheckpointMismatch, NonFinite: see ``scan_trajectory``.
        """
        self._buffer.fill(job)
        return [self._scan(piece) for piece in job.pieces]

    def _scan(self, piece: Piece) -> _Part:
        tensor = piece.tensor
        stored = self._buffer.inputs(piece)
        rows = [part.view(torch_dtype(info.dtype)) for part, info in zip(stored, tensor.inputs, strict=True)]
        counts = np.zeros(BINS + 3, np.int64)
        kind = READ_AS.get(frozenset(info.dtype for info in tensor.inputs))
        if kind is None:
            found = [
                self._scanner.scan(self._convert(rows, start), counts)
                for start in range(0, piece.count, BLOCK)
            ]
        else:
            found = [self._scanner.scan([part.numpy().view(kind) for part in stored], counts)]
        grams = [gram for gram in found if gram is not None]
        if len(grams) < len(found):
            raise self._non_finite(tensor, rows)
        return _Part(piece, np.concatenate(grams), counts, self._draw(piece, rows), _examples(piece, rows))

    def _convert(self, rows: Sequence[torch.Tensor], start: int) -> list[NDArray[np.float32]]:
        """A block of rows that the compiled loops do not read, as float32."""
        if not self._converted.size:
            self._converted = np.zeros((len(rows), BLOCK), np.float32)
        count = min(BLOCK, len(rows[0]) - start)
        for row, converted in zip(rows, self._converted, strict=True):
            torch.from_numpy(converted[:count]).copy_(row[start : start + count])
        return list(self._converted[:, :count])

    def _draw(self, piece: Piece, rows: Sequence[torch.Tensor]) -> NDArray[np.int64]:
        if self._sample is None:
            return np.zeros(BINS + 3, np.int64)
        tensor = piece.tensor
        size = max(LEAST_SAMPLE, int(tensor.elements * self._sample))
        places = draw(tensor.name, tensor.elements, size, seed=1)
        return count_linearity(self._plan.steps, gather(piece, rows, places)[1])

    def _non_finite(self, tensor: TensorPlan, rows: Sequence[torch.Tensor]) -> NonFinite:
        for k, row in enumerate(rows):
            if count_non_finite(row):
                check_blamed(tensor, self._sources, [tensor.checkpoints[k]])
                return NonFinite(
                    f"{tensor.name}: step {self._plan.steps[k]} ({self._plan.names[k]}) holds NaN or "
                    "infinite weights; leave that checkpoint out"
                )
        check_blamed(tensor, self._sources)
        return NonFinite(
            f"{tensor.name}: its weights are so far apart that their squares are no float32; leave out the "
            "checkpoints in which it differs"
        )


@lru_cache(maxsize=8)
def draw(name: str, elements: int, size: int, seed: int) -> NDArray[np.int64]:
    """Places of ``size`` elements of a tensor (all, if it has no more), in order; always the same ones."""
    generator = np.random.default_rng([seed, crc32(name.encode())])
    places = generator.choice(elements, min(size, elements), replace=False)
    return np.sort(places).astype(np.int64)


def example_places(tensor: TensorPlan) -> NDArray[np.int64]:
    """The elements whose values a scan keeps."""
    return draw(tensor.name, tensor.elements, EXAMPLES, seed=0)


def gather(
    piece: Piece, rows: Sequence[torch.Tensor], places: NDArray[np.int64]
) -> tuple[range, NDArray[np.float32]]:
    """Which of ``places`` (in order) lie in the piece, and their values, (n, K)."""
    first, stop = np.searchsorted(places, [piece.start, piece.start + piece.count])
    if first == stop:
        return range(0), np.zeros((0, len(rows)), np.float32)
    inside = torch.from_numpy(places[first:stop] - piece.start)
    # by their bytes: torch 2.6 picks no single float8 numbers
    picked = [row.view(-1, 1).view(torch.uint8)[inside].view(row.dtype).view(-1) for row in rows]
    values = torch.stack([numbers.to(torch.float32) for numbers in picked], dim=1)
    return range(first, stop), values.numpy()


def _examples(piece: Piece, rows: Sequence[torch.Tensor]) -> list[tuple[int, NDArray[np.float32]]]:
    numbers, values = gather(piece, rows, example_places(piece.tensor))
    return list(zip(numbers, values, strict=True))


def _assemble(
    trajectory: Trajectory,
    layouts: Sequence[CheckpointLayout],
    found: Sequence[TensorScan],
    sample: float | None,
    pins: Sequence[str] | None,
) -> Scan:
    steps = trajectory.steps
    if pins is None:
        pins = [f"{c.commit}:{c.path}" if c.repo else c.path for c in trajectory.checkpoints]
    checkpoints = tuple(
        ScannedCheckpoint(c.step, c.name, c.repo, c.revision, c.commit, c.path, _dtypes(layout), pin)
        for c, layout, pin in zip(trajectory.checkpoints, layouts, pins, strict=True)
    )
    n, k = len(found), len(steps)
    return Scan(
        gram_table=GramTable(
            steps,
            tuple(tensor.name for tensor in found),
            np.array([tensor.elements for tensor in found], dtype=np.int64),
            np.array([tensor.gram for tensor in found]).reshape(n, k, k),
        ),
        series=trajectory.series,
        checkpoints=checkpoints,
        counts=np.array([tensor.counts for tensor in found]).reshape(n, BINS + 3),
        random_walk=random_walk(steps),
        example_places=np.array([tensor.example_places for tensor in found]).reshape(n, EXAMPLES),
        example_values=np.array([tensor.example_values for tensor in found]).reshape(n, EXAMPLES, k),
        sample=None
        if sample is None
        else Sample(sample, np.array([tensor.sample_counts for tensor in found]).reshape(n, BINS + 3)),
    )


def _dtypes(layout: CheckpointLayout) -> str:
    return "/".join(sorted({info.dtype for info in layout.tensors.values() if "F" in info.dtype}))
