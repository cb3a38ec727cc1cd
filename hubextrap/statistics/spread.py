"""Standard errors of what single tensors, sums over them and ratios of these come to, from a sample.

By the jackknife, stratified by tensor: from what a term is without each group of weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.statistics.table import GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hubextrap.statistics.table import GramTable

    Terms = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def norm_stderrs(table: GramTable) -> NDArray[np.float64]:
    """(N, K): the standard errors of ‖W_k − W_0‖ of each tensor of a sampled table."""
    factors, squares = _deviations(
        table, lambda gram: np.sqrt(np.diagonal(gram, axis1=1, axis2=2).clip(min=0.0))
    )
    return np.asarray(np.sqrt(squares * factors[:, None]))


def stderr_of_sum(table: GramTable, terms: Terms) -> NDArray[np.float64]:
    """(...)

    Args:
        table: of a sample.
        terms: (N, ...) of Gram matrices (N, K, K); the figure is their sum, or is linear in them nearby.
    """
    return np.asarray(np.sqrt(np.tensordot(*_deviations(table, terms), axes=1)))


def stderr_of_ratio(table: GramTable, above: Terms, below: Terms) -> NDArray[np.float64]:
    """(...): that of Σ above / Σ below, linearised: d(x/y) = (dx − x/y·dy)/y.

    Args:
        above: (N, ...) of Gram matrices.
        below: (N,) of them.
    """
    total = below(table.gram).sum()
    ratio = above(table.gram).sum(axis=0) / total
    return stderr_of_sum(
        table, lambda gram: np.asarray((above(gram) - np.multiply.outer(below(gram), ratio)) / total)
    )


def _deviations(table: GramTable, terms: Terms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,), by which are to be multiplied (N, ...): squared deviations of each term over the groups."""
    without = np.stack([terms(table.left_out(group).gram) for group in range(GROUPS)])
    return table.sampling_factors, ((without - without.mean(axis=0)) ** 2).sum(axis=0)
