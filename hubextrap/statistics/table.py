"""The Gram matrices of a trajectory: what every backtest and every fitted method reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import STEPS
from hubextrap.notebooks import counted, one_line, steps_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from hubextrap.clocks import Clock

SCAN_BLOCK = 2**16
"""Elements of a block: the unit in which Gram sums are handed over and added up."""
GROUPS = 4
"""Groups of a tensor's sampled weights: leaving out each in turn says how far a figure can be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class GramSample:
    """What Gram matrices that are estimates from sampled weights are made of."""

    blocks: NDArray[np.float64]
    """(N, GROUPS, K, K): the products of each group of weights, scaled to the whole tensor; they add up to
    its Gram matrix."""
    drawn: NDArray[np.int64]
    """(N,): weights of each tensor that were looked at."""
    size: int
    """Weights of a tensor that were asked for: as many as any tensor has that is large enough."""

    def of(self, rows: slice | NDArray[np.int64], count: int | None = None) -> GramSample:
        """That of some tensors and of the first checkpoints."""
        return GramSample(self.blocks[rows, :, :count, :count], self.drawn[rows], self.size)


@dataclass(frozen=True, slots=True)
class GramTable:
    """One Gram matrix of deltas per tensor.

    For coefficients a and b that each sum to 1, ‖Σ a_k·W_k − Σ b_k·W_k‖² = (a−b)ᵀ·G·(a−b), whatever the base.
    """

    steps: tuple[int, ...]
    """K, increasing."""
    tensors: tuple[str, ...]
    """N names, in the last checkpoint's order."""
    elements: NDArray[np.int64]
    """(N,)."""
    gram: NDArray[np.float64]
    """(N, K, K): ⟨W_i − W_0, W_j − W_0⟩ of each tensor, W_0 the first checkpoint."""
    clock: Clock = STEPS
    """By which horizons are measured; no inner product depends on it."""
    sample: GramSample | None = None
    """None where all weights were read."""

    def __repr__(self) -> str:
        tensors = counted(len(self.tensors), "tensor")
        return one_line(self, f"{len(self.steps)} checkpoints", steps_in_words(self.steps), tensors)

    @property
    def times(self) -> tuple[float, ...]:
        """(K,) on the clock: what methods take for steps.

        Raises:
            ClockError: as `Clock.times`.
        """
        return self.clock.times(self.steps)

    def seen_at(self, last: int) -> GramTable:
        """What was there, and known of the clock, when checkpoint number ``last`` was the newest."""
        count = last + 1
        return replace(
            self,
            steps=self.steps[:count],
            gram=self.gram[:, :count, :count],
            clock=self.clock.known_at(self.steps[last]),
            sample=self.sample and self.sample.of(slice(None), count),
        )

    @property
    def sampled(self) -> int | None:
        """Weights of a tensor that were looked at, at most; None where all were."""
        return None if self.sample is None else self.sample.size

    @property
    def sampling_factors(self) -> NDArray[np.float64]:
        """(N,): by which squared deviations of left-out groups are multiplied for a variance.

        The jackknife's (GROUPS − 1)/GROUPS, times the share of the tensor's weights that were not drawn; 0
        where all were.
        """
        assert self.sample is not None
        unseen = 1.0 - self.sample.drawn / np.maximum(self.elements, 1)
        return np.asarray(unseen * (GROUPS - 1) / GROUPS, dtype=np.float64)

    def left_out(self, group: int) -> GramTable:
        """What the sample would say without one group of each tensor; of all weights where all were drawn."""
        assert self.sample is not None
        rest = (self.gram - self.sample.blocks[:, group]) * (GROUPS / (GROUPS - 1))
        whole = self.sample.drawn == self.elements
        return replace(self, gram=np.where(whole[:, None, None], self.gram, rest), sample=None)

    def same_weights(self) -> tuple[tuple[int, ...], ...]:
        """Runs of neighbouring steps between which no tensor moved at all."""
        groups = [[self.steps[0]]]
        for k, step in enumerate(self.steps[1:]):
            if np.array_equal(self.gram[:, k], self.gram[:, k + 1]):
                groups[-1].append(step)
            else:
                groups.append([step])
        return tuple(tuple(group) for group in groups if len(group) > 1)

    def parts(self, at_once: int) -> Iterator[GramTable]:
        """The table in pieces of so many tensors, as what is made of one takes memory; nothing is copied."""
        for start in range(0, len(self.tensors), at_once):
            rows = slice(start, start + at_once)
            yield self.of(rows)

    def most_moved(self, count: int) -> GramTable:
        """That of so many tensors at most: those that moved farthest, in the table's order."""
        if len(self.tensors) <= count:
            return self
        moved = np.diagonal(self.gram, axis1=1, axis2=2).max(axis=1)
        rows = np.sort(np.argsort(-moved, kind="stable")[:count])
        return self.of(rows)

    def of(self, rows: slice | NDArray[np.int64]) -> GramTable:
        """That of some tensors."""
        names = self.tensors[rows] if isinstance(rows, slice) else tuple(self.tensors[row] for row in rows)
        sample = self.sample and self.sample.of(rows)
        elements, gram = self.elements[rows], self.gram[rows]
        return replace(self, tensors=names, elements=elements, gram=gram, sample=sample)

    def total(self) -> NDArray[np.float64]:
        """(K, K): the Gram matrix of all tensors taken as one vector."""
        return np.asarray(self.gram.sum(axis=0), dtype=np.float64)
