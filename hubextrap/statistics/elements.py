"""The pass over single elements: compiled loops from stored numbers to Gram sums and an R² histogram.

Importing this imports numba; the first call compiles for some seconds, once for a machine and a version.

A block is worked off in tiles that stay in the first-level cache. Differences between one checkpoint and the
next are taken in float32, where they are exact unless the two values differ by orders of magnitude. Their
products are summed in float32 over a tile only (a few dozen per vector lane), tiles in float64. From the Gram
matrix of these moves follows that of the deltas to the first checkpoint, and not the other way round: the
moves are as small as the errors of predictions, so a backtest does not lose digits to cancellation. The order
of all sums is fixed by the block, so a block's figures depend neither on who computes it nor on whether its
bfloat16 numbers come as they are or widened to float32.

What R² needs is summed in float32; what the filters need is compared in integers as wide as the stored
numbers, of which a vector holds most. Loops are short and many: one long loop waits for its own results.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from hubextrap.compiling import compiled
from hubextrap.statistics.bits import (
    dot_products,
    key_of,
    larger,
    number_of,
    pointer_to,
    smaller,
    spans,
    where_less,
)
from hubextrap.statistics.linearity import BINS, FEW_VALUES, SMALL_RANGE, UNMOVED
from hubextrap.statistics.table import SCAN_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

TILE = 512
STRIDE = TILE + 32
"""Numbers from one row of scratch memory to the next. Powers of two would make rows share cache lines."""
MOVES = 7
"""Moves that a loop takes at a time: the compiler unrolls it and keeps their sums in registers."""
TABLES = 8
"""Tables that are counted in by turns: counting in one place again and again has to wait for itself."""

_COUNTS = BINS + 3
_PLACES = np.float32(BINS)
_LAST_PLACE = np.float32(BINS - 1)
_UNMOVED, _SMALL_RANGE, _FEW_VALUES = np.uint32(UNMOVED), np.uint32(SMALL_RANGE), np.uint32(FEW_VALUES)
_ZERO = np.float32(0)

_part: Any = partial(compiled, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what `_scan` is made of; what would call it from elsewhere takes a third of its time to compile."""

# Element by element: nothing is added in another order, and each product is fused with the addition after it.
_ORDERED = {"contract", "nsz"}


class BlockScanner:
    """The scratch memory of one worker. Not thread-safe.

    Args:
        steps: K of them.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._observed = count = len(steps)
        times = np.asarray(steps, dtype=np.float64)
        times = (times - times[0]) / (times[-1] - times[0])
        times -= times.mean()
        # Rows behind the last repeat the first checkpoint, so that loops can take MOVES at a time: that
        # changes no least, no most, no sum of deltas and no number of values.
        rows = 1 + -(-(count - 1) // MOVES) * MOVES
        self._times = np.zeros(rows, np.float32)
        self._times[:count] = times
        self._time_variation = np.float32(1 / (times**2).sum())
        self._rows = {size: _scratch(rows * STRIDE, f"u{size}") for size in (2, 4)}
        self._extremes = {size: _scratch(4 * STRIDE, f"i{size}") for size in (2, 4)}
        self._moves = _scratch((rows - 1) * STRIDE, "f4")
        self._sums = _scratch(3 * STRIDE, "f4")
        self._places = _scratch(TILE, "u4")
        self._tables = np.zeros(TABLES * _COUNTS, np.int32)
        # each move, two at a time, with itself and the half of the others that follow it, round and round
        following = 4 * ((count - 1) // 8 + 1)
        self._products = np.zeros((count - count % 2, following))
        self._starts = np.arange(count + following + 1) % (count - 1) * STRIDE

    def scan(
        self, rows: Sequence[NDArray[np.uint16] | NDArray[np.float32]], counts: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """Scan a run of elements of one tensor.

        Args:
            rows: K rows of n numbers, all float32 or all the bits of bfloat16.
            counts: (BINS + 3,), which is added to.

        Returns:
            (blocks, K, K): sums of products of the deltas to row 0, one matrix for every ``SCAN_BLOCK``
            elements and what is left; None when they are not finite, and ``counts`` holds what came before.
        """
        size, elements = rows[0].itemsize, len(rows[0])
        grams = np.zeros((-(-elements // SCAN_BLOCK), self._observed, self._observed))
        finite = _scan(
            np.array([row.__array_interface__["data"][0] for row in rows]),
            elements,
            self._times,
            self._time_variation,
            self._rows[size],
            self._extremes[size],
            self._moves,
            self._starts,
            self._sums,
            self._places,
            self._tables,
            self._products,
            counts,
            grams,
        )
        return grams if finite else None


def _scratch(count: int, kind: DTypeLike) -> NDArray[Any]:
    """Zeros that begin where a cache line does: a vector that lies in two takes twice as long to load."""
    size = count * np.dtype(kind).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(kind)


@compiled
def _scan(addresses, elements, times, time_variation, rows, extremes, moves, starts, sums, places, tables, products, counts, grams):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    observed = len(addresses)
    share = np.float32(1 / observed)
    taken = len(times)
    bits = rows[0]
    rows, extremes, moves, sums = _borrowed(rows), _borrowed(extremes), _borrowed(moves), _borrowed(sums)
    times = _borrowed(times)
    for block in range(len(grams)):
        first, stop = block * SCAN_BLOCK, min((block + 1) * SCAN_BLOCK, elements)
        tables[:] = 0
        products[:] = 0
        for start in range(first, stop, TILE):
            here = min(TILE, stop - start)
            for k in range(taken):
                stored = carray(pointer_to(addresses[k if k < observed else 0], bits), elements)
                _copy(stored[start : start + here], rows[k * STRIDE :])
            for k in range(0, taken - 1, MOVES):
                _add_extremes(rows[k * STRIDE :], extremes, k > 0)
                _add_line(rows, rows[k * STRIDE :], moves[k * STRIDE :], times[k:], sums, k > 0)
            for k in range(0, taken - 1, MOVES):
                _add_inner(rows[k * STRIDE :], extremes, k > 0)
            _find_places(extremes, sums, time_variation, share, places)
            _add_products(moves, starts, products)
            if not _is_finite(products):
                return False  # and what stands in places may be anything
            _count(places, tables)
            tables[UNMOVED] -= TILE - here
        for i in range(len(tables)):
            counts[i % _COUNTS] += tables[i]
        _add_up(products, observed - 1, grams[block])
    return True


@_part()
def _borrowed(array):  # type: ignore[no-untyped-def]
    """An array without its owner, for slices that nobody counts: counting takes longer than a short loop."""
    return carray(pointer_to(array.ctypes.data, array[0]), len(array))


@_part()
def _copy(source, row):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        row[i] = source[i]
    if len(source) < TILE:
        row[len(source) : TILE] = 0  # elements that are not there do not move


# What is known of a tile's elements, each a stretch of one array: the compiler vectorizes only what cannot
# overlap.
_LEAST, _MOST, _SECOND, _SECOND_LAST = (STRIDE * i for i in range(4))
_TOTAL, _COVARIATION, _SQUARES = (STRIDE * i for i in range(3))


@_part()
def _add_extremes(rows, extremes, begun):  # type: ignore[no-untyped-def]
    """The least and the most of 1 + MOVES checkpoints, and of those before when that has ``begun``."""
    for i in range(TILE):
        least = most = key_of(rows[i])
        for k in range(1, 1 + MOVES):
            key = key_of(rows[k * STRIDE + i])
            least, most = smaller(least, key), larger(most, key)
        extremes[_LEAST + i] = smaller(least, extremes[_LEAST + i]) if begun else least
        extremes[_MOST + i] = larger(most, extremes[_MOST + i]) if begun else most


@_part()
def _add_inner(rows, extremes, begun):  # type: ignore[no-untyped-def]
    """The second smallest and second largest distinct value, likewise."""
    for i in range(TILE):
        least, most = extremes[_LEAST + i], extremes[_MOST + i]
        second = extremes[_SECOND + i] if begun else most
        second_last = extremes[_SECOND_LAST + i] if begun else least
        for k in range(1 + MOVES):
            key = key_of(rows[k * STRIDE + i])
            second = where_less(least, key, smaller(second, key), second)
            second_last = where_less(key, most, larger(second_last, key), second_last)
        extremes[_SECOND + i] = second
        extremes[_SECOND_LAST + i] = second_last


@_part(fastmath=_ORDERED)
def _add_line(base, rows, moves, times, sums, begun):  # type: ignore[no-untyped-def]
    """MOVES moves, and the sums that R² needs; ``rows`` and ``times`` begin one checkpoint earlier."""
    for i in range(TILE):
        start, before = number_of(base[i]), number_of(rows[i])
        total = sums[_TOTAL + i] if begun else _ZERO
        covariation = sums[_COVARIATION + i] if begun else _ZERO
        squares = sums[_SQUARES + i] if begun else _ZERO
        for k in range(1, 1 + MOVES):
            value = number_of(rows[k * STRIDE + i])
            moves[(k - 1) * STRIDE + i] = value - before
            before = value
            delta = value - start
            total += delta
            covariation += times[k] * delta
            squares += delta * delta
        sums[_TOTAL + i] = total
        sums[_COVARIATION + i] = covariation
        sums[_SQUARES + i] = squares


@_part(fastmath=_ORDERED, error_model="numpy")
def _find_places(extremes, sums, time_variation, share, places):  # type: ignore[no-untyped-def]
    """Where each weight is counted."""
    for i in range(TILE):
        total, covariation = sums[_TOTAL + i], sums[_COVARIATION + i]
        variation = sums[_SQUARES + i] - total * total * share
        fit = covariation * covariation * time_variation / variation
        above = fit * _PLACES if fit > _ZERO else _ZERO
        kept = np.uint32(np.int32(above if above < _LAST_PLACE else _LAST_PLACE))
        least, most = extremes[_LEAST + i], extremes[_MOST + i]
        # the second value is below the second last with 4 or more distinct ones, and else not
        several = kept if extremes[_SECOND + i] < extremes[_SECOND_LAST + i] else _FEW_VALUES
        wide = several if spans(least, most) else _SMALL_RANGE
        places[i] = wide if least < most else _UNMOVED


@_part()
def _add_products(moves, starts, products):  # type: ignore[no-untyped-def]
    """products[a, d]: move a times the one d places on, two by four, so that each value is used often."""
    rows, following = products.shape
    numbers = moves.ctypes.data
    for a in range(0, rows, 2):
        for d in range(a, a + following, 4):
            found = dot_products(
                numbers,
                TILE,
                starts[a],
                starts[a + 1],
                starts[d],
                starts[d + 1],
                starts[d + 2],
                starts[d + 3],
                starts[d + 4],
            )
            for i in range(4):
                products[a, d - a + i] += found[i]
                products[a + 1, d - a + i] += found[4 + i]


@_part()
def _is_finite(products):  # type: ignore[no-untyped-def]
    total = 0.0
    for a in range(len(products)):
        total += products[a, 0]
    return np.isfinite(total)


@_part()
def _count(places, tables):  # type: ignore[no-untyped-def]
    for i in range(0, TILE, TABLES):
        for j in range(TABLES):
            tables[np.uint64(places[i + j]) + np.uint64(j * _COUNTS)] += 1


@_part()
def _add_up(products, count, gram):  # type: ignore[no-untyped-def]
    """The Gram matrix of the deltas, which are sums of moves, from that of the moves."""
    for a in range(count):
        for d in range(products.shape[1]):
            b = (a + d) % count
            gram[a + 1, b + 1] = gram[b + 1, a + 1] = products[a, d]
    for a in range(1, count + 1):
        for b in range(1, count + 1):
            gram[a, b] += gram[a - 1, b]
    for a in range(1, count + 1):
        for b in range(1, count + 1):
            gram[a, b] += gram[a, b - 1]
