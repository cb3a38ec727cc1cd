"""A shard cut into jobs: which bytes of which checkpoint go where in a worker's buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.ranges import coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.engine.plan import ShardPlan, TensorPlan
    from hubextrap.tensors.layout import TensorInfo

ALIGNMENT = 64
"""Every stretch of the buffer starts at a multiple, so that each tensor in it can be viewed as its dtype."""
BOOKKEEPING = 512
"""Bytes of Python objects that describe one input of one piece. They count into the buffer: with many tiny
tensors of many checkpoints they are most of what a job takes."""
GRAIN = 1024
"""Tensors are cut at multiples of so many elements, unless a caller needs a coarser grain."""


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of one checkpoint's file and their place in the buffer."""

    checkpoint: int
    file: str
    offset: int
    size: int
    position: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of one tensor."""

    tensor: TensorPlan
    start: int
    """First element."""
    count: int
    inputs: tuple[int, ...]
    """Places in the buffer, one for each of the tensor's inputs."""
    twins: tuple[int, ...]
    """The same for its tied copies."""

    @property
    def ends_tensor(self) -> bool:
        return self.start + self.count == self.tensor.elements


@dataclass(frozen=True, slots=True)
class Job:
    """Consecutive bytes of one output file."""

    shard: ShardPlan
    offset: int
    """First byte in the file."""
    size: int
    """Bytes, the same for every target."""
    pieces: tuple[Piece, ...]
    """In offset order, without gaps."""
    reads: tuple[Read, ...]
    outputs: tuple[int, ...]
    """Place in the buffer of each target's bytes."""

    @property
    def starts_shard(self) -> bool:
        return self.offset == len(self.shard.header)

    @property
    def ends_shard(self) -> bool:
        return self.offset + self.size == self.shard.size


@dataclass(frozen=True, slots=True)
class _Cut:
    tensor: TensorPlan
    start: int
    count: int


def cut_jobs(
    shard: ShardPlan, targets: int, job_bytes: int, grain: int = GRAIN, piece_bytes: int = 0
) -> Iterator[Job]:
    """Cut a shard into jobs that each fit ``job_bytes`` of buffer; a shard without data is one empty job.

    Args:
        piece_bytes: what a piece takes beside the buffer until it is handed over, counted into it.
    """
    offset = len(shard.header)
    cuts: list[_Cut] = []
    size, left = 0, job_bytes - targets * ALIGNMENT
    for tensor in shard.tensors:
        start = 0
        while start < tensor.elements:
            count = min(
                tensor.elements - start,
                (left - _overhead(tensor) - piece_bytes) // _element_bytes(tensor, targets),
            )
            if count < tensor.elements - start:
                count -= count % grain
            if count <= 0 or size % tensor.itemsize:  # full, or the output could not be viewed as its dtype
                job = _lay_out(shard, offset, cuts, targets)
                yield job
                offset += job.size
                cuts, size, left = [], 0, job_bytes - targets * ALIGNMENT
                continue
            cuts.append(_Cut(tensor, start, count))
            size += count * tensor.itemsize
            left -= _overhead(tensor) + piece_bytes + count * _element_bytes(tensor, targets)
            start += count
    if cuts or offset == len(shard.header):
        yield _lay_out(shard, offset, cuts, targets)


def job_minimum(tensors: Sequence[TensorPlan], targets: int, grain: int = GRAIN, piece_bytes: int = 0) -> int:
    """The smallest buffer that ``cut_jobs`` can work with."""
    return targets * ALIGNMENT + max(
        (_overhead(tensor) + piece_bytes + grain * _element_bytes(tensor, targets) for tensor in tensors),
        default=0,
    )


def _element_bytes(tensor: TensorPlan, targets: int) -> int:
    stored = [*tensor.inputs, *(twin for _, twin in tensor.twins)]
    return sum(DTYPES[info.dtype].itemsize for info in stored) + targets * tensor.itemsize


def _overhead(tensor: TensorPlan) -> int:
    """What alignment and bookkeeping may cost: each input of each piece may be a stretch of its own."""
    return (ALIGNMENT + BOOKKEEPING) * (len(tensor.inputs) + len(tensor.twins))


def _lay_out(shard: ShardPlan, offset: int, cuts: Sequence[_Cut], targets: int) -> Job:
    """Give every input of every cut its place, reading neighbours in one go."""
    wanted: list[tuple[int, TensorInfo, _Cut]] = []
    for cut in cuts:
        wanted += [(k, info, cut) for k, info in zip(cut.tensor.checkpoints, cut.tensor.inputs, strict=True)]
        wanted += [(cut.tensor.checkpoints[i], twin, cut) for i, twin in cut.tensor.twins]
    by_file: dict[tuple[int, str], list[int]] = {}
    for number, (checkpoint, info, _) in enumerate(wanted):
        by_file.setdefault((checkpoint, info.file), []).append(number)

    reads: list[Read] = []
    places = [0] * len(wanted)
    position = 0
    for (checkpoint, file), numbers in by_file.items():
        ranges = [_range(wanted[number][1], wanted[number][2]) for number in numbers]
        for first, stop, members in _aligned_spans(ranges, [wanted[number][1] for number in numbers]):
            reads.append(Read(checkpoint, file, first, stop - first, position))
            for member in members:
                places[numbers[member]] = position + ranges[member][0] - first
            position += _aligned(stop - first)

    pieces = []
    next_place = iter(places)
    for cut in cuts:
        inputs = tuple(next(next_place) for _ in cut.tensor.inputs)
        twins = tuple(next(next_place) for _ in cut.tensor.twins)
        pieces.append(Piece(cut.tensor, cut.start, cut.count, inputs, twins))
    size = sum(cut.count * cut.tensor.itemsize for cut in cuts)
    outputs = tuple(position + target * _aligned(size) for target in range(targets))
    return Job(shard, offset, size, tuple(pieces), tuple(reads), outputs)


def _range(info: TensorInfo, cut: _Cut) -> tuple[int, int]:
    itemsize = DTYPES[info.dtype].itemsize
    return info.offset + cut.start * itemsize, cut.count * itemsize


def _aligned_spans(
    ranges: Sequence[tuple[int, int]], infos: Sequence[TensorInfo]
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(start, stop, members) of touching ranges, split where a tensor could not be viewed as its dtype."""
    for span in coalesce(ranges, max_gap=0, max_size=2**63):
        if all((ranges[i][0] - span.start) % DTYPES[infos[i].dtype].itemsize == 0 for i in span.members):
            yield span.start, span.stop, span.members
        else:
            for i in span.members:
                yield ranges[i][0], sum(ranges[i]), (i,)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
