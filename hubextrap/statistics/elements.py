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
        even = count + count % 2
        places = np.asarray(steps, dtype=np.float64)
        places = (places - places[0]) / (places[-1] - places[0])
        places -= places.mean()
        self._times = places.astype(np.float32)
        self._time_variation = np.float32(1 / (places**2).sum())
        self._values = np.zeros((count, TILE), np.float32)
        self._moves = np.zeros((even, TILE), np.float32)
        self._moments = np.zeros((7, TILE), np.float32)
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
        size = len(self._moves)
        gram = np.zeros((size, size))
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
            counts,
        )
        if not finite:
            return None
        upper = np.triu(gram[: len(kinds), : len(kinds)])
        return np.cumsum(np.cumsum(upper + np.triu(upper, 1).T, axis=0), axis=1)


@njit(nogil=True, cache=True, error_model="numpy")
def _scan_block(raw16, raw32, converted, kinds, places, count, times, time_variation, values, moves, moments, place, gram, counts):  # type: ignore[no-untyped-def]  # noqa: E501  # fmt: skip
    bits = values.view(np.uint32)
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
        _begin(values[0], moments)
        for k in range(1, observed):
            _add_row(values[0], values[k - 1], values[k], moves[k], times[k], moments)
        _add_products(moves, gram)
        if not np.isfinite(np.trace(gram)):
            return False
        _inner_values(values, moments)
        _count(time_variation, share, moments, place, counts)
        counts[UNMOVED] -= TILE - here
    return True


@njit(nogil=True, cache=True)
def _widen(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        target[i] = source[i]


@njit(nogil=True, cache=True)
def _begin(base, moments):  # type: ignore[no-untyped-def]
    least, most = moments[0], moments[1]
    for i in range(TILE):
        least[i] = most[i] = base[i]
    moments[2:5] = 0


@njit(nogil=True, cache=True, fastmath=_FINITE)
def _add_row(base, before, row, move, time, moments):  # type: ignore[no-untyped-def]
    """One checkpoint's moves, and what R² and the filters need of it."""
    least, most, total, covariation, squares = moments[0], moments[1], moments[2], moments[3], moments[4]
    for i in range(TILE):
        value = row[i]
        difference = value - base[i]
        move[i] = value - before[i]
        least[i] = min(least[i], value)
        most[i] = max(most[i], value)
        total[i] += difference
        covariation[i] += time * difference
        squares[i] += difference * difference


@njit(nogil=True, cache=True, fastmath=_LANES)
def _add_products(moves, gram):  # type: ignore[no-untyped-def]
    """Upper triangle of the Gram matrix, two rows by two, so that each value loaded is used twice."""
    size = len(moves)
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


@njit(nogil=True, cache=True, fastmath=_FINITE)
def _inner_values(values, moments):  # type: ignore[no-untyped-def]
    """Second smallest and second largest distinct value; with 4 or more, the one is below the other."""
    least, most, second, second_last = moments[0], moments[1], moments[5], moments[6]
    for i in range(TILE):
        second[i] = most[i]
        second_last[i] = least[i]
    for k in range(len(values)):
        row = values[k]
        for i in range(TILE):
            value = row[i]
            above = value if value > least[i] else most[i]
            below = value if value < most[i] else least[i]
            second[i] = min(second[i], above)
            second_last[i] = max(second_last[i], below)


@njit(nogil=True, cache=True, fastmath=_ORDERED, error_model="numpy")
def _count(time_variation, share, moments, place, counts):  # type: ignore[no-untyped-def]
    least, most, total, covariation, squares = moments[0], moments[1], moments[2], moments[3], moments[4]
    second, second_last = moments[5], moments[6]
    for i in range(TILE):
        variation = squares[i] - total[i] * total[i] * share
        fit = covariation[i] * covariation[i] * time_variation / variation
        kept = min(min(max(fit, _ZERO), _ONE) * _PLACES, _LAST_PLACE)
        enough = kept if second[i] < second_last[i] else _FEW_VALUES
        wide = enough if np.float64(most[i]) - np.float64(least[i]) > MIN_RANGE else _SMALL_RANGE
        place[i] = np.int32(wide if most[i] > least[i] else _UNMOVED)
    for i in range(TILE):
        counts[place[i]] += 1
