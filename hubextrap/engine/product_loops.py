"""The compiled loop of products of factors, each element in a fixed order.

An element is Σ_k left[i, k]·right[k, j] in float64: from +0 on, one fused multiply-add for each k in turn. So
it follows from its row and its column alone, whatever else is made with it, on whatever processor. Libraries
that multiply matrices promise neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hubextrap.engine.casts import fused, load, store

_ALONE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_njit: Any = njit(**_ALONE)
_ZERO = np.float64(0)
_WIDTH = 256
"""Columns that are made at once: with four rows of each factor they stay in the first-level cache."""


def multiply(left, right, made, rows, inner, columns, stride):  # type: ignore[no-untyped-def]
    """Write ``rows`` x ``columns`` elements to ``made``; all are float64, and one row follows the other.

    Args:
        left: ``rows`` x ``inner``.
        right: ``inner`` rows of ``columns``, ``stride`` elements from each to the next.
    """
    for first in range(0, columns, _WIDTH):
        width, begun, row = min(_WIDTH, columns - first), right + 8 * first, 0
        while row < rows:
            factor, output = left + 8 * row * inner, made + 8 * (row * columns + first)
            if row + 4 <= rows:
                _four_rows(factor, begun, output, inner, width, columns, stride)
                row += 4
            else:
                _one_row(factor, begun, output, inner, width, stride)
                row += 1


@_njit
def _four_rows(left, right, made, inner, width, columns, stride):  # type: ignore[no-untyped-def]
    """Four rows by four k at a time: what is loaded of ``right`` is used four times, and of sums too."""
    one, two, three, four = made, made + 8 * columns, made + 16 * columns, made + 24 * columns
    for sums in (one, two, three, four):
        _clear(sums, width)
    k = 0
    while k + 4 <= inner:
        a, b = right + 8 * k * stride, right + 8 * (k + 1) * stride
        c, d = right + 8 * (k + 2) * stride, right + 8 * (k + 3) * stride
        weights = left + 8 * k
        a1, b1, c1, d1 = _four(weights)
        a2, b2, c2, d2 = _four(weights + 8 * inner)
        a3, b3, c3, d3 = _four(weights + 16 * inner)
        a4, b4, c4, d4 = _four(weights + 24 * inner)
        for j in range(width):
            p, q, r, s = load(a, j, _ZERO), load(b, j, _ZERO), load(c, j, _ZERO), load(d, j, _ZERO)
            store(one, j, fused(d1, s, fused(c1, r, fused(b1, q, fused(a1, p, load(one, j, _ZERO))))))
            store(two, j, fused(d2, s, fused(c2, r, fused(b2, q, fused(a2, p, load(two, j, _ZERO))))))
            store(three, j, fused(d3, s, fused(c3, r, fused(b3, q, fused(a3, p, load(three, j, _ZERO))))))
            store(four, j, fused(d4, s, fused(c4, r, fused(b4, q, fused(a4, p, load(four, j, _ZERO))))))
        k += 4
    while k < inner:
        for i in range(4):
            _add(load(left, i * inner + k, _ZERO), right + 8 * k * stride, made + 8 * i * columns, width)
        k += 1


@_njit
def _one_row(left, right, made, inner, width, stride):  # type: ignore[no-untyped-def]
    _clear(made, width)
    for k in range(inner):
        _add(load(left, k, _ZERO), right + 8 * k * stride, made, width)


@_njit
def _clear(sums, width):  # type: ignore[no-untyped-def]
    for j in range(width):
        store(sums, j, _ZERO)


@_njit
def _add(weight, values, sums, width):  # type: ignore[no-untyped-def]
    for j in range(width):
        store(sums, j, fused(weight, load(values, j, _ZERO), load(sums, j, _ZERO)))


@_njit
def _four(address):  # type: ignore[no-untyped-def]
    return load(address, 0, _ZERO), load(address, 1, _ZERO), load(address, 2, _ZERO), load(address, 3, _ZERO)
