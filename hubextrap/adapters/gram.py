"""Inner products of deltas from their factors alone: no delta is ever formed.

With W_k = W_base + s_k·L_k·R_k, L_k (rows, r_k) and R_k (r_k, cols),

    H_ij = ⟨s_i·L_i·R_i, s_j·L_j·R_j⟩ = s_i·s_j·Σ (L_iᵀ·L_j) ∘ (R_i·R_jᵀ),

as tr(R_iᵀ·L_iᵀ·L_j·R_j) = tr(L_iᵀ·L_j·R_j·R_iᵀ). All L_iᵀ·L_j are blocks of one product of the stacked
factors with itself, of which BLAS computes a half.

Everything is float64: from H follow the inner products of moves, whose squares may be a millionth of those of
the deltas. (In float32, sums of squares of bfloat16 numbers come out too small by 2.5e-7 in blocks of 512
already: ties are common, and rounding them to even is not fair to sums that grow.) What is multiplied at once
follows from the shapes alone, so the figures depend neither on memory nor on threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from hubextrap.scans.checks import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

LENGTH = 2048
"""Rows of L, or columns of R, that are multiplied at once."""
RANKS = 512
"""Ranks that are stacked, and the sum of ``GROUP_BYTES`` of factors: more checkpoints are taken in groups."""
GROUP_BYTES = 64 * 2**20


class Product(Protocol):
    """scale·left·right, for each of E matrices."""

    @property
    def scale(self) -> float: ...
    @property
    def left(self) -> NDArray[np.floating]:
        """(E, rows, r)"""

    @property
    def right(self) -> NDArray[np.floating]:
        """(E, r, cols)"""


def inner_products(
    load: Callable[[int], Product], ranks: Sequence[int], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """H of n products of one tensor, (n, n).

    Args:
        load: the product of a number; two groups of them are held at the same time.
        ranks: (n,)
        sizes: (n,): bytes of the factors of each.
    """
    found = np.zeros((len(ranks), len(ranks)))
    parts = groups(ranks, sizes)
    for number, part in enumerate(parts):
        ones = [load(k) for k in part]
        mine = slice(part.start, part.stop)
        found[mine, mine] = _between(ones, ones)
        for other in parts[number + 1 :]:
            theirs = slice(other.start, other.stop)
            found[mine, theirs] = _between(ones, [load(k) for k in other])
            found[theirs, mine] = found[mine, theirs].T
    return found


def groups(ranks: Sequence[int], sizes: Sequence[int]) -> list[range]:
    """Neighbours that are stacked: one each, or of ``RANKS`` and ``GROUP_BYTES`` at most."""
    found: list[range] = []
    start = rank = size = 0
    for k, (more, larger) in enumerate(zip(ranks, sizes, strict=True)):
        if k > start and (rank + more > RANKS or size + larger > GROUP_BYTES):
            found.append(range(start, k))
            start, rank, size = k, 0, 0
        rank, size = rank + more, size + larger
    return [*found, range(start, len(ranks))] if len(ranks) else found


def centred(products: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """G_ij = H_ij − H_fj − H_if + H_ff, (n, n): inner products of moves from number ``first``.

    Exactly symmetric, and exactly 0 in row and column ``first``. Where moves are so small beside the deltas
    that rounding makes a square of them negative, the nearest positive semi-definite matrix is taken.
    """
    rows = products - products[first]
    moves = rows - rows[:, first : first + 1]
    moves = (moves + moves.T) / 2
    scale = np.abs(moves).max()
    if scale == 0 or not np.isfinite(scale):
        return np.asarray(moves, dtype=np.float64)
    squares, vectors = np.linalg.eigh(moves / scale)
    if squares[0] < -ROUNDING / 10:
        moves = (vectors * squares.clip(min=0.0)) @ vectors.T * scale
        moves[first], moves[:, first] = 0.0, 0.0
        moves = (moves + moves.T) / 2
    return np.asarray(moves, dtype=np.float64)


def elements_at(product: Product, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """The elements of a product at these places, (n,), counted through (E, rows, cols) in C order.

    Args:
        places: (n,), in order.
    """
    count, rows, columns = len(product.left), product.left.shape[1], product.right.shape[2]
    matrices, inside = np.divmod(places, rows * columns)
    row, column = np.divmod(inside, columns)
    found = np.empty(len(places))
    bounds = np.searchsorted(matrices, np.arange(count + 1))
    for number in np.flatnonzero(np.diff(bounds)):
        mine = slice(bounds[number], bounds[number + 1])
        left = product.left[number].take(row[mine], axis=0).astype(np.float64)
        right = product.right[number].take(column[mine], axis=1).astype(np.float64)
        np.einsum("nr,rn->n", left, right, out=found[mine])
    return found * product.scale


def _between(ones: Sequence[Product], others: Sequence[Product]) -> NDArray[np.float64]:
    """H of some products, (len(ones), len(others))."""
    found = np.zeros((len(ones), len(others)))
    same = others is ones
    for number in range(len(ones[0].left)):
        lefts, more_lefts = ([one.left[number].T for one in some] for some in (ones, others))
        rights, more_rights = ([one.right[number] for one in some] for some in (ones, others))
        products = _stacked_products(lefts, None if same else more_lefts)
        products *= _stacked_products(rights, None if same else more_rights)
        starts, more_starts = (np.cumsum([0, *map(len, some[:-1])]) for some in (rights, more_rights))
        found += np.add.reduceat(np.add.reduceat(products, starts, axis=0), more_starts, axis=1)
    scales, more_scales = (np.array([one.scale for one in some]) for some in (ones, others))
    return found * np.outer(scales, more_scales)


def _stacked_products(
    ones: Sequence[NDArray[np.floating]], others: Sequence[NDArray[np.floating]] | None
) -> NDArray[np.float64]:
    """The products of all rows of some matrices, (Σ r, Σ r').

    Args:
        ones, others: (r, length) each; None: of ``ones`` with themselves.
    """
    stacks = [_Stack(some) for some in (ones, others) if some is not None]
    found = np.zeros((stacks[0].height, stacks[-1].height))
    product = np.empty_like(found)
    for start in range(0, ones[0].shape[1], LENGTH):
        blocks = [stack.columns(start) for stack in stacks]
        # of a matrix with its own transpose, numpy has BLAS compute a half
        found += np.matmul(blocks[0], blocks[-1].T, out=product)
    return found


class _Stack:
    """Matrices on top of each other, some columns at a time: always in the same memory, as fresh memory costs
    more than what is copied there."""

    def __init__(self, matrices: Sequence[NDArray[np.floating]]) -> None:
        self._matrices = matrices
        self.height = sum(map(len, matrices))
        self._room = np.empty(self.height * min(LENGTH, matrices[0].shape[1]))

    def columns(self, start: int) -> NDArray[np.float64]:
        """(height, at most ``LENGTH``)"""
        parts = [one[:, start : start + LENGTH] for one in self._matrices]
        shape = self.height, parts[0].shape[1]
        room = self._room[: shape[0] * shape[1]]
        # as its inputs, either axis of which may be the longer one in memory, so that whole runs are copied
        down, along = parts[0].strides
        block = room.reshape(shape) if down >= along else room.reshape(shape[::-1]).T
        return np.concatenate(parts, out=block, casting="same_kind")
