"""Standard errors of sums over tensors, and of their ratios, where Gram matrices come from a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.statistics.table import GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hubextrap.statistics.table import GramTable

    Terms = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def stderr_of_sum(table: GramTable, terms: Terms) -> NDArray[np.float64]:
    """(...): by the jackknife, stratified by tensor: from what each term is without each group of weights.

    Args:
        table: of a sample.
        terms: (N, ...) of Gram matrices (N, K, K); the figure is their sum, or is linear in them nearby.
    """
    without = np.stack([terms(table.left_out(group).gram) for group in range(GROUPS)])
    squares = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(np.tensordot(table.sampling_factors, squares, axes=1)))


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
