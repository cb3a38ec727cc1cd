"""Tensors that lie in pieces: blocks in byte ranges of files, put together when a range of elements is read.

Nearly always each block is a run of the tensor's elements, and so is what a range and a block have in common.
Otherwise a range is a few boxes: whole rows, and parts of the first and the last row. What a box and a block
have in common lies in one piece in the block's file.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hubextrap.tensors.gathering import SCRATCH, Wanted, gather
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.virtual import Bytes

    Extent = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A block of a tensor, row-major, in one byte range of one file."""

    file: str
    offset: int
    """First byte, counted from the start of the file."""
    starts: tuple[int, ...]
    """Its first element in the tensor, one index per dimension."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Pieces:
    """How a tensor is put together: its blocks cover it and do not overlap."""

    dtype: str
    """safetensors name."""
    shape: tuple[int, ...]
    pieces: tuple[StoredPiece, ...]

    writes: ClassVar[str] = ""
    packed: ClassVar[int] = 0
    held: ClassVar[int] = 0

    @property
    def files(self) -> frozenset[str]:
        """Those that hold a block."""
        return frozenset(piece.file for piece in self.pieces)

    def fill(self, source: Source, start: int, out: Bytes) -> None:
        """Write the elements from ``start`` on that ``out`` has room for.

        Raises:
            SourceError: a block could not be read.
        """
        gather(source, self.wanted(start, out))

    def wanted(self, start: int, out: Bytes) -> Iterator[Wanted]:
        """What has to be read for that."""
        size = DTYPES[self.dtype].itemsize
        stop = start + len(out) // size
        if self._runs is None:
            position = 0
            for starts, shape in boxes(self.shape, start, stop):
                count = math.prod(shape) * size
                yield from self._in_box(starts, shape, out[position : position + count])
                position += count
            return
        firsts, pieces = self._runs
        for number in range(max(bisect_right(firsts, start) - 1, 0), len(pieces)):
            begin, piece = firsts[number], pieces[number]
            if begin >= stop:
                break
            first, last = max(start, begin), min(stop, begin + math.prod(piece.shape))
            if first < last:
                into = out[(first - start) * size : (last - start) * size]
                yield Wanted(piece.file, piece.offset + (first - begin) * size, into)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, once JSON has carried it."""
        files = sorted(self.files)
        numbers = {file: number for number, file in enumerate(files)}
        pieces = [[numbers[one.file], one.offset, one.starts, one.shape] for one in self.pieces]
        return {"dtype": self.dtype, "shape": self.shape, "files": files, "pieces": pieces}

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """What `to_json` was asked of."""
        pieces = (
            StoredPiece(stated["files"][number], offset, tuple(starts), tuple(shape))
            for number, offset, starts, shape in stated["pieces"]
        )
        return cls(stated["dtype"], tuple(stated["shape"]), tuple(pieces))

    @cached_property
    def _runs(self) -> tuple[list[int], tuple[StoredPiece, ...]] | None:
        """Where each block is a run of the tensor's elements, as slices of its first dimension are: the first
        element of each, in order, and the blocks; else None."""
        if not all(_is_run(piece.shape, self.shape) for piece in self.pieces):
            return None
        origin = (0,) * len(self.shape)
        firsts = [(_position(piece.starts, origin, self.shape), piece) for piece in self.pieces]
        firsts.sort(key=itemgetter(0))
        return [first for first, _ in firsts], tuple(piece for _, piece in firsts)

    @cached_property
    def _by_row(self) -> tuple[tuple[StoredPiece, ...], list[int], int]:
        """The blocks by their first row, these rows, and the most rows that one has."""
        pieces = tuple(sorted(self.pieces, key=lambda piece: piece.starts))
        return pieces, [one.starts[0] for one in pieces], max(one.shape[0] for one in pieces)

    def _near(self, first: int, stop: int) -> tuple[StoredPiece, ...]:
        """The blocks that may hold some of these rows."""
        pieces, rows, most = self._by_row
        return pieces[bisect_left(rows, first - most + 1) : bisect_left(rows, stop)]

    def _in_box(self, starts: Extent, shape: Extent, out: Bytes) -> Iterator[Wanted]:
        """What has to be read for a part of one row, or whole rows."""
        size = DTYPES[self.dtype].itemsize
        box = out.reshape(*shape, size)
        for piece in self._near(starts[0], starts[0] + shape[0]):
            firsts = tuple(map(max, starts, piece.starts))
            extents = tuple(
                min(start + extent, begin + length) - first
                for start, extent, begin, length, first in zip(
                    starts, shape, piece.starts, piece.shape, firsts, strict=True
                )
            )
            if min(extents) <= 0:
                continue
            where = tuple(
                slice(first - start, first - start + extent)
                for first, start, extent in zip(firsts, starts, extents, strict=True)
            )
            place = piece.offset + size * _position(firsts, piece.starts, piece.shape)
            yield from _within_scratch(Wanted(piece.file, place, box[where]))


def _within_scratch(wanted: Wanted) -> Iterator[Wanted]:
    """The same, cut where its place does not lie in one piece and it is large."""
    into = wanted.into
    if into.size <= SCRATCH or into.flags.c_contiguous:
        yield wanted
        return
    axis = next(axis for axis, extent in enumerate(into.shape) if extent > 1)
    each = into.size // into.shape[axis]
    step = max(1, SCRATCH // each)
    for first in range(0, into.shape[axis], step):
        part = into[(*[slice(None)] * axis, slice(first, first + step))]
        yield from _within_scratch(Wanted(wanted.file, wanted.offset + first * each, part))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that a checkpoint's files hold in pieces."""

    name: str
    parts: Pieces


def boxes(shape: Extent, start: int, stop: int) -> Iterator[tuple[Extent, Extent]]:
    """(first element, extents) of the boxes that elements ``start`` to ``stop`` are, in order.

    Of a box all dimensions behind the first one that it has more than one of are whole.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    inner = math.prod(shape[1:])
    (first, skipped), (last, rest) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        yield from _within_row(shape, first, skipped, rest)
        return
    if skipped:
        yield from _within_row(shape, first, skipped, inner)
        first += 1
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if rest:
        yield from _within_row(shape, last, 0, rest)


def _within_row(shape: Extent, row: int, start: int, stop: int) -> Iterator[tuple[Extent, Extent]]:
    for starts, extents in boxes(shape[1:], start, stop):
        yield (row, *starts), (1, *extents)


def _position(element: Extent, origin: Extent, shape: Extent) -> int:
    """How many elements of a block lie before one, row-major."""
    position = 0
    for index, first, extent in zip(element, origin, shape, strict=True):
        position = position * extent + index - first
    return position


def _is_run(extents: Extent, shape: Extent) -> bool:
    """Whether a part of so many elements lies in one piece in a row-major box of a shape."""
    inner = next((axis for axis, extent in enumerate(extents) if extent > 1), len(extents))
    return extents[inner + 1 :] == shape[inner + 1 :]


CELLS = 4_000_000
"""Cells of the grid that blocks' bounds cut a tensor into, at most."""


def cover_problem(shape: Sequence[int], blocks: Sequence[tuple[Extent, Extent]]) -> str | None:
    """What is wrong with blocks that should hold each element of a tensor once; None where they do.

    Slices of its first dimension, as nearly all are, are looked at in their order. For others the bounds of
    all blocks cut the tensor into a grid, whose cells are counted.

    Args:
        blocks: first element and extents of each; empty ones have to lie inside too.

    Returns:
        The end of a sentence: ``its elements from [2, 0] on are in none``.
    """
    for starts, extents in blocks:
        if any(
            first < 0 or first + extent > size
            for first, extent, size in zip(starts, extents, shape, strict=True)
        ):
            return f"elements from {list(starts)} on lie outside of its shape {list(shape)} in one"
    if not math.prod(shape):
        return None
    blocks = [block for block in blocks if math.prod(block[1])]
    if not shape:
        return (
            None if len(blocks) == 1 else "its element is in several" if blocks else "its element is in none"
        )
    inner = tuple(shape[1:])
    if all(extents[1:] == inner for _, extents in blocks):
        return _gap_in_rows(shape, sorted((starts[0], extents[0]) for starts, extents in blocks))
    bounds = [
        sorted(
            {
                0,
                size,
                *(at for starts, extents in blocks for at in (starts[axis], starts[axis] + extents[axis])),
            }
        )
        for axis, size in enumerate(shape)
    ]
    cells = [len(one) - 1 for one in bounds]
    if math.prod(cells) > CELLS:
        return "its blocks lie in no grid: they cannot be compared within bounds"
    places = [{bound: number for number, bound in enumerate(one)} for one in bounds]
    counts = np.zeros(cells, np.int32)
    for starts, extents in blocks:
        counts[
            tuple(
                slice(at[first], at[first + extent])
                for at, first, extent in zip(places, starts, extents, strict=True)
            )
        ] += 1
    wrong = np.argwhere(counts != 1)
    if not len(wrong):
        return None
    cell = wrong[0].tolist()
    first = [one[number] for one, number in zip(bounds, cell, strict=True)]
    return f"its elements from {first} on are in {'several' if counts[tuple(cell)] else 'none'}"


def _gap_in_rows(shape: Sequence[int], rows: Sequence[tuple[int, int]]) -> str | None:
    """`cover_problem` of slices: (first row, number of rows) of each, in order."""
    position = 0
    for first, count in [*rows, (shape[0], 0)]:
        if first != position:
            at = [min(first, position), *(0 for _ in shape[1:])]
            return f"its elements from {at} on are in {'several' if first < position else 'none'}"
        position += count
    return None
