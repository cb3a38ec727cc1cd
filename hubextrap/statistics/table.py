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
        )

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
            yield replace(
                self, tensors=self.tensors[rows], elements=self.elements[rows], gram=self.gram[rows]
            )

    def most_moved(self, count: int) -> GramTable:
        """That of so many tensors at most: those that moved farthest, in the table's order."""
        if len(self.tensors) <= count:
            return self
        moved = np.diagonal(self.gram, axis1=1, axis2=2).max(axis=1)
        rows = np.sort(np.argsort(-moved, kind="stable")[:count])
        names = tuple(self.tensors[row] for row in rows)
        return replace(self, tensors=names, elements=self.elements[rows], gram=self.gram[rows])

    def total(self) -> NDArray[np.float64]:
        """(K, K): the Gram matrix of all tensors taken as one vector."""
        return np.asarray(self.gram.sum(axis=0), dtype=np.float64)
