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
from numba import njit

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
_ZERO, _ONE = np.float32(0), np.float32(1)

# Sums may be split over vector lanes, the same way every time; NaN and infinity keep their meaning where they
# decide something. _FINITE is for loops whose results are only used once the Gram sums were found finite.
_LANES = {"reassoc", "contract", "nsz"}
_ORDERED = {"contract", "nsz"}
_FINITE = {"contract", "nsz", "nnan", "ninf"}


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
        rows = 1 + -(-(count - 1) // ROWS) * ROWS
        self._times = np.zeros(rows, np.float32)
        self._times[:count] = times
        self._time_variation = np.float32(1 / (times**2).sum())
        self._values = np.zeros((rows, STRIDE), np.float32)
        self._moves = np.zeros((rows, STRIDE), np.float32)
        self._moments = np.zeros(7 * STRIDE, np.float32)
        self._places = np.zeros(TILE, np.int32)

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
        size = len(kinds) + len(kinds) % 2
        gram = np.zeros((size, size))
        four_counts = np.zeros((4, len(counts)), np.int64)
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
            gram,
            four_counts,
        )
        if not finite:
            return None
        counts += four_counts.sum(axis=0)
        upper = np.triu(gram[: len(kinds), : len(kinds)])
        return np.cumsum(np.cumsum(upper + np.triu(upper, 1).T, axis=0), axis=1)


@njit(nogil=True, cache=True, error_model="numpy")
def _scan_block(raw16, raw32, converted, kinds, places, count, times, time_variation, values, moves, moments, place, gram, counts):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    bits = values.view(np.uint32)
    flat_values, flat_moves = values.reshape(-1), moves.reshape(-1)
    observed = len(kinds)
    share = np.float32(1 / observed)
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
            values[k, here:] = 0  # elements that are not there do not move
        for k in range(observed, len(values)):
            _copy(values[0], values[k])
        _begin(values[0], moments)
        for k in range(1, observed, ROWS):
            _add_rows(
                values[0], flat_values[(k - 1) * STRIDE :], flat_moves[k * STRIDE :], times[k:], moments
            )
        if observed % 2:
            moves[observed] = 0  # the products are taken two rows by two
        _add_products(moves, gram)
        if not np.isfinite(np.trace(gram)):
            return False
        for k in range(0, observed, ROWS):
            _add_inner_values(flat_values[k * STRIDE :], moments)
        _count(time_variation, share, moments, place, counts)
        counts[0, UNMOVED] -= TILE - here
    return True


@njit(nogil=True, cache=True)
def _widen(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = source[i]


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


@njit(nogil=True, cache=True, fastmath=_FINITE)
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
            least = value if value < least else least
            most = value if value > most else most
            delta = value - start
            total += delta
            covariation += times[k] * delta
            squares += delta * delta
        moments[_LEAST + i] = least
        moments[_MOST + i] = most
        moments[_TOTAL + i] += total
        moments[_COVARIATION + i] += covariation
        moments[_SQUARES + i] += squares


@njit(nogil=True, cache=True, fastmath=_LANES)
def _add_products(moves, gram):  # type: ignore[no-untyped-def]
    """Upper triangle of the Gram matrix, two rows by two, so that each value loaded is used twice."""
    size = len(gram)
    for a in range(0, size, 2):
        one, other = moves[a], moves[a + 1]
        for b in range(a, size, 2):
            left, right = moves[b], moves[b + 1]
            s = t = u = v = _ZERO
            for i in range(TILE):
                s += one[i] * left[i]
                t += one[i] * right[i]
                u += other[i] * left[i]
                v += other[i] * right[i]
            gram[a, b] += np.float64(s)
            gram[a, b + 1] += np.float64(t)
            gram[a + 1, b] += np.float64(u)
            gram[a + 1, b + 1] += np.float64(v)


@njit(nogil=True, cache=True, fastmath=_ORDERED)
def _add_inner_values(rows, moments):  # type: ignore[no-untyped-def]
    """Second smallest and second largest distinct value, with ROWS more checkpoints."""
    for i in range(TILE):
        least, most = moments[_LEAST + i], moments[_MOST + i]
        second, second_last = moments[_SECOND + i], moments[_SECOND_LAST + i]
        for k in range(ROWS):
            value = rows[k * STRIDE + i]
            second = value if (value > least) & (value < second) else second
            second_last = value if (value < most) & (value > second_last) else second_last
        moments[_SECOND + i] = second
        moments[_SECOND_LAST + i] = second_last


@njit(nogil=True, cache=True, fastmath=_ORDERED, error_model="numpy")
def _count(time_variation, share, moments, place, counts):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        least, most, total = moments[_LEAST + i], moments[_MOST + i], moments[_TOTAL + i]
        covariation = moments[_COVARIATION + i]
        variation = moments[_SQUARES + i] - total * total * share
        fit = covariation * covariation * time_variation / variation
        kept = min(min(max(fit, _ZERO), _ONE) * _PLACES, _LAST_PLACE)
        # with 4 or more distinct values, and only then, the second is below the second last
        enough = kept if moments[_SECOND + i] < moments[_SECOND_LAST + i] else _FEW_VALUES
        wide = enough if np.float64(most) - np.float64(least) > MIN_RANGE else _SMALL_RANGE
        place[i] = np.int32(wide if most > least else _UNMOVED)
    one, two, three, four = counts[0], counts[1], counts[2], counts[3]
    for i in range(
        0, TILE, 4
    ):  # four tables, as counting in one place again and again has to wait for itself
        one[place[i]] += 1
        two[place[i + 1]] += 1
        three[place[i + 2]] += 1
        four[place[i + 3]] += 1
