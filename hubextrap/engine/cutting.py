"""Tensors cut into units: which bytes of which checkpoint go where in a worker's buffer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.engine.units import Piece, Read, Twin
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.ranges import coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.tensors.layout import TensorInfo

ALIGNMENT = 64
"""Every stretch of the buffer starts at a multiple, so that each tensor in it can be viewed as its dtype."""
BOOKKEEPING = 512
"""Bytes of Python objects that describe one input of one piece. They count into the buffer: with many tiny
tensors of many checkpoints they are most of what a unit takes."""
GRAIN = 1024
"""Tensors are cut at multiples of so many elements, unless a pass needs a coarser grain."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a pass needs of its units beside the bytes that are read."""

    targets: int = 0
    """Outputs that are made in the buffer."""
    grain: int = GRAIN
    """Tensors are cut at multiples of so many elements."""
    piece_bytes: int = 0
    """What a piece takes beside the buffer until it is handed over, counted into it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of elements of one tensor."""

    tensor: TensorInputs
    start: int
    count: int


def cut(tensors: Sequence[TensorInputs], unit_bytes: int, room: Room) -> Iterator[list[Cut]]:
    """What goes into each unit, so that it fits ``unit_bytes`` of buffer."""
    cuts: list[Cut] = []
    size, left = 0, unit_bytes - room.targets * ALIGNMENT
    for tensor in tensors:
        overhead, per_element = _overhead(tensor, room), _element_bytes(tensor, room)
        start = 0
        while start < tensor.elements:
            count = min(tensor.elements - start, (left - overhead) // per_element)
            if count < tensor.elements - start:
                count -= count % room.grain
            # full, or the output could not be viewed as its dtype
            if count <= 0 or size % (tensor.itemsize or 1):
                yield cuts
                cuts, size, left = [], 0, unit_bytes - room.targets * ALIGNMENT
                continue
            cuts.append(Cut(tensor, start, count))
            size += count * tensor.itemsize
            left -= overhead + count * per_element
            start += count
    if cuts:
        yield cuts


def unit_minimum(tensors: Sequence[TensorInputs], room: Room) -> int:
    """The smallest buffer that ``cut`` can work with."""
    return room.targets * ALIGNMENT + max(
        (_overhead(tensor, room) + room.grain * _element_bytes(tensor, room) for tensor in tensors), default=0
    )


def lay_out(cuts: Sequence[Cut]) -> tuple[tuple[Piece, ...], tuple[Read, ...], int]:
    """Give every input of every cut its place, reading neighbours in one go; and where the rest is free."""
    wanted: list[tuple[TensorInfo, Cut]] = []
    by_file: dict[tuple[int, str], list[int]] = {}
    for one in cuts:
        checkpoints, twins = one.tensor.checkpoints, one.tensor.twins
        twin_of = ((checkpoints[i], twin) for i, twin in twins)
        for checkpoint, info in (*zip(checkpoints, one.tensor.inputs, strict=True), *twin_of):
            by_file.setdefault((checkpoint, info.file), []).append(len(wanted))
            wanted.append((info, one))

    reads: list[Read] = []
    places = [0] * len(wanted)
    position = 0
    for (checkpoint, file), numbers in by_file.items():
        ranges = [_range(*wanted[number]) for number in numbers]
        for first, stop, members in _aligned_spans(ranges, [wanted[number][0] for number in numbers]):
            reads.append(Read(checkpoint, file, first, stop - first, position))
            for member in members:
                places[numbers[member]] = position + ranges[member][0] - first
            position += aligned(stop - first)

    next_place = iter(places)
    pieces = [
        Piece(
            one.tensor.name,
            one.tensor.elements,
            one.start,
            one.count,
            one.tensor.checkpoints,
            tuple(info.dtype for info in one.tensor.inputs),
            tuple(next(next_place) for _ in one.tensor.inputs),
            tuple(Twin(i, twin.name, next(next_place)) for i, twin in one.tensor.twins),
        )
        for one in cuts
    ]
    return tuple(pieces), tuple(reads), position


def aligned(size: int) -> int:
    """The stretch of the buffer that so many bytes take."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _element_bytes(tensor: TensorInputs, room: Room) -> int:
    stored = [*tensor.inputs, *(twin for _, twin in tensor.twins)]
    return sum(DTYPES[info.dtype].itemsize for info in stored) + room.targets * tensor.itemsize


def _overhead(tensor: TensorInputs, room: Room) -> int:
    """What alignment and bookkeeping may cost: each input of each piece may be a stretch of its own."""
    return (ALIGNMENT + BOOKKEEPING) * (len(tensor.inputs) + len(tensor.twins)) + room.piece_bytes


def _range(info: TensorInfo, one: Cut) -> tuple[int, int]:
    itemsize = DTYPES[info.dtype].itemsize
    return info.offset + one.start * itemsize, one.count * itemsize


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
