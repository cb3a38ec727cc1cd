"""RELEX (arXiv 2605.21468): a line through the leading directions of a tensor's deltas."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError
from hubextrap.methods.lines import least_squares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

NEGLIGIBLE = 1e-12
"""Eigenvalues below this share of the largest are rounding (singular values below 1e-6, as in RELEX)."""


def low_rank(
    steps: Sequence[float], target_step: float, *, gram_matrix: NDArray[np.float64], rank: int = 1
) -> NDArray[np.float64]:
    """The deltas' projections on their ``rank`` leading directions, each extrapolated by a fitted line.

    The deltas are those of every later checkpoint to the first one, which is no point of the fit, as in the
    RELEX code. With U_r the leading eigenvectors of their Gram matrix and q the least-squares coefficients
    of a line with intercept on the real steps, c = U_r·U_rᵀ·q, and the first checkpoint gets 1 − Σc.

    Args:
        gram_matrix: (K, K) inner products of the tensor's deltas; the base they refer to does not matter.
        rank: from 1 to K − 1, where it is `least_squares` over all checkpoints but the first.

    Raises:
        MethodError: fewer than three checkpoints, or a rank that they do not have.
    """
    return _prepared(steps, gram_matrix, rank=rank)(target_step)


def _prepared(
    steps: Sequence[float], gram: NDArray[np.float64], *, rank: int = 1
) -> Callable[[float], NDArray[np.float64]]:
    """`low_rank` for one target after another: (…, K) coefficients of (…, K, K) Gram matrices."""
    later = len(steps) - 1
    if later < 2:
        raise MethodError(
            "low_rank needs three checkpoints (the base and two for the line), but there are only "
            f"{len(steps)}; add earlier ones"
        )
    if not 1 <= rank <= later:
        raise MethodError(
            f"rank {rank}: give a rank from 1 to {later}, the number of checkpoints after the first"
        )
    first = gram[..., :1, :]
    to_base = gram - first - np.swapaxes(first, -1, -2) + gram[..., :1, :1]
    values, vectors = np.linalg.eigh(to_base[..., 1:, 1:])
    counts = values[..., -rank:] > NEGLIGIBLE * np.maximum(values[..., -1:], 0.0)
    leading = vectors[..., -rank:] * counts[..., None, :]
    return partial(_projected, steps, leading)


low_rank.prepared = _prepared  # type: ignore[attr-defined]


def _projected(
    steps: Sequence[float], leading: NDArray[np.float64], target_step: float
) -> NDArray[np.float64]:
    """(…, K): the line over all checkpoints but the first, projected on (…, K − 1, rank) directions."""
    line = least_squares(steps[1:], target_step)
    result = np.zeros((*leading.shape[:-2], len(steps)))
    result[..., 1:] = (leading @ (np.swapaxes(leading, -1, -2) @ line[:, None]))[..., 0]
    result[..., 0] = 1.0 - result[..., 1:].sum(axis=-1)
    return result
