"""The pass over single elements: one compiled loop from stored bytes to Gram sums and R² histogram.

Importing this takes half a second (numba); the first call compiles for some seconds, once a machine.

A block is worked off in tiles that stay in the first-level cache. Differences between one checkpoint and the
next are taken in float32, where they are exact unless the two values differ by orders of magnitude. Their
products are summed in float32 over a tile only (a few dozen a vector lane), tiles in float64. From the Gram
matrix of these moves follows that of the deltas to the first checkpoint, and not the other way round: the
moves are as small as the errors of predictions, so a backtest does not lose digits to cancellation. The order
of all sums is fixed by the block, so a block's figures do not depend on who computes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from hubextrap.statistics.linearity import BINS, FEW_VALUES, MIN_RANGE, SMALL_RANGE, UNMOVED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLOCK = 2**16
"""Elements of a block: the unit in which Gram sums are handed over and added up."""
TILE = 512
STRIDE = TILE + 16
"""Floats from one row of scratch memory to the next. Powers of two would make rows share cache lines."""
ROWS = 8
"""Checkpoints that a loop takes at a time: the compiler unrolls it and keeps their sums in registers."""
AS_FLOAT32, AS_BFLOAT16, CONVERTED = 0, 1, 2
"""How a row is stored: in the buffer as float32 or bfloat16, or converted to float32 beside it."""

_PLACES = np.float32(BINS)
_LAST_PLACE = np.float32(BINS - 1)
_UNMOVED, _SMALL_RANGE, _FEW_VALUES = np.float32(UNMOVED), np.float32(SMALL_RANGE), np.float32(FEW_VALUES)
_ZERO = np.float32(0)

# Sums may be split over vector lanes, the same way every time.
_LANES = {"reassoc", "contract", "nsz"}
_ORDERED = {"contract", "nsz"}


class BlockScanner:
    """The scratch memory of one worker. Not thread-safe.

    Args:
        steps: K of them.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        count = len(steps)
        times = np.asarray(steps, dtype=np.float64)
        times = (times - times[0]) / (times[-1] - times[0])
        times -= times.mean()
        # Rows behind the last repeat the first checkpoint, so that loops can take ROWS at a time: that
        # changes no least, no most, no sum of deltas and no number of values.
        rows = ROWS if count <= ROWS else 1 + -(-count // ROWS) * ROWS
        self._times = np.zeros(rows, np.float32)
        self._times[:count] = times
        self._time_variation = np.float32(1 / (times**2).sum())
        self._values = np.zeros((rows, STRIDE), np.float32)
        self._moves = np.zeros((rows - 1, STRIDE), np.float32)
        self._moments = np.zeros(7 * STRIDE, np.float32)
        self._places = np.zeros(TILE, np.uint32)
        self._tables = np.zeros((4, BINS + 3), np.int32)
        # each move with itself and the half of the others that follow it, round and round, by fours
        self._products = np.zeros((count - 1, 4 * ((count - 1) // 8 + 1)))

    def scan(
        self,
        raw: NDArray[np.uint8],
        converted: NDArray[np.float32],
        kinds: NDArray[np.int64],
        places: NDArray[np.int64],
        count: int,
        counts: NDArray[np.int64],
    ) -> NDArray[np.float64] | None:
        """Scan one block.

        Args:
            raw: the buffer that holds the rows, its length a multiple of 4.
            converted: (K, at least ``count``): row k, if it is ``CONVERTED``.
            kinds: (K,): how each row is stored.
            places: (K,): where each row begins in ``raw``, in elements of its own type.
            count: elements of the block.
            counts: (BINS + 3,), which is added to.

        Returns:
            (K, K): sums of products of the deltas to row 0; None when they are not finite.
        """
        gram = np.zeros((len(kinds), len(kinds)))
        finite = _scan_block(
            raw.view(np.uint16),
            raw.view(np.float32),
            converted,
            kinds,
            places,
            count,
            self._times,
            self._time_variation,
            self._values,
            self._moves,
            self._moments,
            self._places,
            self._tables,
            self._products,
            counts,
            gram,
        )
        return gram if finite else None


@njit(nogil=True, cache=True)
def _scan_block(raw16, raw32, converted, kinds, places, count, times, time_variation, values, moves, moments, place, tables, products, counts, gram):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    bits = values.view(np.uint32)
    flat_values, flat_moves = values.reshape(-1), moves.reshape(-1)
    observed = len(kinds)
    share = np.float32(1 / observed)
    tables[:] = 0
    products[:] = 0
    for start in range(0, count, TILE):
        here = min(TILE, count - start)
        for k in range(observed):
            first = places[k] + start
            if kinds[k] == AS_BFLOAT16:
                _widen(raw16[first : first + here], bits[k])
            elif kinds[k] == AS_FLOAT32:
                _copy(raw32[first : first + here], values[k])
            else:
                _copy(converted[k][start : start + here], values[k])
            values[k, here:TILE] = 0  # elements that are not there do not move
        for k in range(observed, len(values)):
            _copy(values[0], values[k])
        if len(values) == ROWS:
            _measure(flat_values, flat_moves, times, time_variation, share, place)
        else:
            _begin(values[0], moments)
            for k in range(1, observed, ROWS):
                _add_rows(
                    values[0],
                    flat_values[(k - 1) * STRIDE :],
                    flat_moves[(k - 1) * STRIDE :],
                    times[k:],
                    moments,
                )
            for k in range(0, observed, ROWS):
                _add_inner_values(flat_values[k * STRIDE :], moments)
            _place_all(time_variation, share, moments, place)
        _add_products(moves, products)
        if not np.isfinite(products[:, 0].sum()):
            return False  # and what stands in place may be anything
        _count(place, tables)
        tables[0, UNMOVED] -= TILE - here
    for table in tables:
        counts += table
    _add_up(products, gram)
    return True


@njit(nogil=True, cache=True)
def _widen(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = source[i]


def _of_numbers(name: str):  # type: ignore[no-untyped-def]
    """The compiler's own minimum or maximum, told that neither is NaN: one instruction, masked or not."""

    @intrinsic
    def function(typing_context, one, other):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kind = ir.FloatType()
            called = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind, kind]))
            return builder.call(called, arguments, fastmath=("nnan", "nsz"))

        return types.float32(types.float32, types.float32), build

    return function


_lesser, _greater = _of_numbers("llvm.minnum"), _of_numbers("llvm.maxnum")


@njit(nogil=True, cache=True, fastmath=_ORDERED, error_model="numpy")
def _measure(rows, moves, times, time_variation, share, place):  # type: ignore[no-untyped-def]
    """All that the functions below do, where ROWS checkpoints are all: nothing leaves the registers."""
    for i in range(TILE):
        start = before = least = most = rows[i]
        total = covariation = squares = _ZERO
        for k in range(1, ROWS):
            value = rows[k * STRIDE + i]
            moves[(k - 1) * STRIDE + i] = value - before
            before = value
            least, most = _lesser(least, value), _greater(most, value)
            delta = value - start
            total += delta
            covariation += times[k] * delta
            squares += delta * delta
        second, second_last = most, least
        for k in range(ROWS):
            value = rows[k * STRIDE + i]
            second = _lesser(second, value) if value > least else second
            second_last = _greater(second_last, value) if value < most else second_last
        place[i] = _place(
            least, most, second < second_last, total, covariation, squares, time_variation, share
        )


# Moments of a tile, each a stretch of one array: the compiler vectorizes only what cannot overlap.
_LEAST, _MOST, _TOTAL, _COVARIATION, _SQUARES, _SECOND, _SECOND_LAST = (STRIDE * i for i in range(7))


@njit(nogil=True, cache=True)
def _begin(base, moments):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        moments[_LEAST + i] = base[i]
        moments[_MOST + i] = base[i]
    moments[_TOTAL:_SECOND] = 0
    moments[_SECOND:_SECOND_LAST] = np.inf
    moments[_SECOND_LAST:] = -np.inf


@njit(nogil=True, cache=True, fastmath=_ORDERED)
def _add_rows(base, rows, moves, times, moments):  # type: ignore[no-untyped-def]
    """ROWS checkpoints' moves, and what R² and the filters need of them; ``rows`` begins one row earlier."""
    for i in range(TILE):
        start = base[i]
        before = rows[i]
        least, most = moments[_LEAST + i], moments[_MOST + i]
        total = covariation = squares = _ZERO
        for k in range(ROWS):
            value = rows[(k + 1) * STRIDE + i]
            moves[k * STRIDE + i] = value - before
            before = value
            least, most = _lesser(least, value), _greater(most, value)
            delta = value - start
            total += delta
            covariation += times[k] * delta
            squares += delta * delta
        moments[_LEAST + i] = least
        moments[_MOST + i] = most
        moments[_TOTAL + i] += total
        moments[_COVARIATION + i] += covariation
        moments[_SQUARES + i] += squares


@njit(nogil=True, cache=True, fastmath=_ORDERED)
def _add_inner_values(rows, moments):  # type: ignore[no-untyped-def]
    """Second smallest and second largest distinct value, with ROWS more checkpoints."""
    for i in range(TILE):
        least, most = moments[_LEAST + i], moments[_MOST + i]
        second, second_last = moments[_SECOND + i], moments[_SECOND_LAST + i]
        for k in range(ROWS):
            value = rows[k * STRIDE + i]
            second = _lesser(second, value) if value > least else second
            second_last = _greater(second_last, value) if value < most else second_last
        moments[_SECOND + i] = second
        moments[_SECOND_LAST + i] = second_last


@njit(nogil=True, cache=True, fastmath=_ORDERED, error_model="numpy")
def _place_all(time_variation, share, moments, place):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        place[i] = _place(
            moments[_LEAST + i],
            moments[_MOST + i],
            moments[_SECOND + i] < moments[_SECOND_LAST + i],
            moments[_TOTAL + i],
            moments[_COVARIATION + i],
            moments[_SQUARES + i],
            time_variation,
            share,
        )


@njit(nogil=True, cache=True, fastmath=_ORDERED, error_model="numpy")
def _place(least, most, enough, total, covariation, squares, time_variation, share):  # type: ignore[no-untyped-def]
    """Where a weight is counted.

    ``enough``: whether its second value is below the second last: with 4 or more distinct ones, else not.
    """
    variation = squares - total * total * share
    fit = covariation * covariation * time_variation / variation
    above = fit * _PLACES if fit > _ZERO else _ZERO
    kept = above if above < _LAST_PLACE else _LAST_PLACE
    several = kept if enough else _FEW_VALUES
    wide = several if np.float64(most) - np.float64(least) > MIN_RANGE else _SMALL_RANGE
    return np.uint32(np.int32(wide if most > least else _UNMOVED))


@njit(nogil=True, cache=True, fastmath=_LANES)
def _add_products(moves, products):  # type: ignore[no-untyped-def]
    """products[a, d]: move a times the one d places on, four by four, so that each value is used often."""
    count, following = products.shape
    for a in range(count):
        one = moves[a]
        for d in range(0, following, 4):
            second, third = moves[(a + d + 1) % count], moves[(a + d + 2) % count]
            first, fourth = moves[(a + d) % count], moves[(a + d + 3) % count]
            s = t = u = v = _ZERO
            for i in range(TILE):
                s += one[i] * first[i]
                t += one[i] * second[i]
                u += one[i] * third[i]
                v += one[i] * fourth[i]
            products[a, d] += np.float64(s)
            products[a, d + 1] += np.float64(t)
            products[a, d + 2] += np.float64(u)
            products[a, d + 3] += np.float64(v)


@njit(nogil=True, cache=True)
def _count(place, tables):  # type: ignore[no-untyped-def]
    one, two, three, four = tables[0], tables[1], tables[2], tables[3]
    # four tables, as counting in one place again and again has to wait for itself
    for i in range(0, TILE, 4):
        one[np.uint64(place[i])] += 1
        two[np.uint64(place[i + 1])] += 1
        three[np.uint64(place[i + 2])] += 1
        four[np.uint64(place[i + 3])] += 1


@njit(nogil=True, cache=True)
def _add_up(products, gram):  # type: ignore[no-untyped-def]
    """The Gram matrix of the deltas, which are sums of moves, from that of the moves."""
    count, following = products.shape
    for a in range(count):
        for d in range(following):
            b = (a + d) % count
            gram[a + 1, b + 1] = gram[b + 1, a + 1] = products[a, d]
    for a in range(1, count + 1):
        for b in range(1, count + 1):
            gram[a, b] += gram[a - 1, b]
    for a in range(1, count + 1):
        for b in range(1, count + 1):
            gram[a, b] += gram[a, b - 1]
