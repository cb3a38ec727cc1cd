"""A sum of products of factors as one product: of all factors side by side, or cut to a rank.

Σ w_k·L_k·R_k = L·R with L = [w_1·L_1 …] and R = [R_1; …]. With L = Q·S and Rᵀ = P·T, QR decompositions,
L·R = Q·(S·Tᵀ)·Pᵀ, so the singular values of the sum are those of the small core S·Tᵀ (Halko, Martinsson and
Tropp, arXiv 0909.4061, §5 has the same step). Nothing of the size of the sum itself is ever formed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hubextrap.adapters.blas import one_blas_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Matrices: TypeAlias = "NDArray[np.float64]"
Term: TypeAlias = "tuple[float, NDArray[np.floating], NDArray[np.floating]]"
"""w, left (E, rows, r) and right (E, r, columns): w·left[e]·right[e] of each of E experts, or of one."""
MOST_LOST = 0.01
"""Share of a change's energy above which what a cut to a rank loses is worth a warning."""


def stacked(terms: Sequence[Term]) -> tuple[Matrices, Matrices]:
    """The factors of all terms side by side, the weights in the left ones, as float64.

    Returns:
        (E, rows, Σr) and (E, Σr, columns), each in one piece.

    Raises:
        ValueError: there are no terms.
    """
    # one copy at a time: this is most of the memory that a prediction takes
    left = np.concatenate([np.asarray(one, np.float64) * weight for weight, one, _ in terms], axis=2)
    right = np.concatenate([np.asarray(one, np.float64) for _, _, one in terms], axis=1)
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def recompressed(terms: Sequence[Term], rank: int | None) -> tuple[Matrices, Matrices, float]:
    """The sum of the terms as a product of two factors.

    Args:
        terms: at least one; all of one E, rows and columns.
        rank: of what is made; None for all factors side by side, which is exact.

    Returns:
        (E, rows, N) and (E, N, columns), whose columns and rows are as long as each other; and which share of
        ‖Σ‖² (Frobenius, of all experts together) was cut off. Where the sum's own rank is below ``rank``,
        the rest is zeros.

    Raises:
        LinAlgError: the sum exceeds float64.
        ValueError: there are no terms.
    """
    if rank is None:
        return (*stacked([_balanced(term) for term in terms]), 0.0)
    left, right = stacked(terms)
    experts, rows, _ = left.shape
    made = np.zeros((experts, rows, rank)), np.zeros((experts, rank, right.shape[2]))
    total = lost = 0.0
    for expert in range(experts):
        with one_blas_thread():
            outer, values, inner = _decomposed(left[expert], right[expert])
        kept, half = min(rank, len(values)), np.sqrt(values)
        made[0][expert, :, :kept] = outer[:, :kept] * half[:kept]
        made[1][expert, :kept] = half[:kept, None] * inner[:kept]
        total += float(np.sum(values**2))
        lost += float(np.sum(values[kept:] ** 2))
    return (*made, lost / total if total else 0.0)


def _decomposed(left: Matrices, right: Matrices) -> tuple[Matrices, Matrices, Matrices]:
    """The singular value decomposition of left·right, without what is noise beside the largest value.

    The largest element of each left vector is positive, so that equal sums give equal factors.
    """
    q, s = np.linalg.qr(left)
    p, t = np.linalg.qr(right.T)
    with np.errstate(over="ignore", invalid="ignore"):
        core = s @ t.T
    if not np.isfinite(core).all():  # LAPACK itself refuses some of these
        raise np.linalg.LinAlgError("the sum exceeds float64")
    u, values, v = np.linalg.svd(core, full_matrices=False)
    noise = max(left.shape[0], right.shape[1]) * np.finfo(np.float64).eps * values[:1]
    u, values, v = u[:, values > noise], values[values > noise], v[values > noise]
    outer, inner = q @ u, v @ p.T
    largest = np.abs(outer).argmax(axis=0, keepdims=True)
    signs = np.sign(np.take_along_axis(outer, largest, axis=0))
    return outer * signs, values, signs.T * inner


def _balanced(term: Term) -> Term:
    """The same term of weight 1, whose factors are as large as each other, but for a power of 2.

    A power of 2 costs no rounding: the right factor keeps every bit, and the left one is rounded once.
    """
    weight, left, right = term
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    with np.errstate(over="ignore"):
        sizes = abs(weight) * float(np.sum(left**2)) ** 0.5, float(np.sum(right**2)) ** 0.5
    usual = all(0 < size < math.inf for size in sizes)  # of huge numbers the squares may overflow
    power = round(math.log2(sizes[0] / sizes[1]) / 2) if usual else 0
    return 1.0, left * (weight * 2.0**-power), right * 2.0**power
