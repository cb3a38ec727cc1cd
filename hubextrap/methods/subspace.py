"""RELEX (arXiv 2605.21468): a line through the leading directions of a tensor's deltas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError
from hubextrap.methods.lines import least_squares, sum_to_one

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    line = least_squares(steps[1:], target_step)
    first = gram_matrix[:1]
    to_base = gram_matrix - first - first.T + gram_matrix[0, 0]
    values, vectors = np.linalg.eigh(to_base[1:, 1:])
    leading = vectors[:, -rank:][:, values[-rank:] > NEGLIGIBLE * max(values[-1], 0.0)]
    result = np.zeros(len(steps))
    result[1:] = leading @ (leading.T @ line)
    result[0] = 1.0 - math.fsum(result[1:])
    return sum_to_one(result)
