"""What a run's own past says about predicting it: every earlier checkpoint that could have been the last one.

A rehearsal is a pair (origin j, target k) of observed checkpoints, j < k: had j been the last, k is what was
to be predicted. It counts for a prediction when its relative horizon (s_k − s_j)/(s_j − s_0) is near that of
the prediction. Everything here reads steps, or times on another clock, and Gram matrices only, and nothing
behind the last checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

HORIZON_WIDTH = 0.4
"""Standard deviation of the weight over ln(horizon): a horizon half or twice as long counts 0.22."""
FARTHEST = 3.0
"""Standard deviations beyond which a rehearsal does not count: horizons more than 3.3 times off."""
SIGNAL_RANK = 2
ROUNDED = (0.1, 0.3)
"""Shares of white noise in the motion between neighbours: up to the first it is training, from the second on
rounding."""


@dataclass(frozen=True, slots=True)
class Rehearsals:
    """R rehearsals of one prediction."""

    origins: NDArray[np.intp]
    """(R,) positions of the checkpoints that act as the last one, not decreasing."""
    targets: NDArray[np.intp]
    """(R,) positions of the checkpoints to predict."""
    weights: NDArray[np.float64]
    """(R,) above 0: how much each says about the prediction."""

    def __post_init__(self) -> None:
        for array in (self.origins, self.targets, self.weights):
            array.flags.writeable = False  # others' methods are handed them

    def __len__(self) -> int:
        return len(self.origins)

    def same_as(self, other: Rehearsals) -> bool:
        mine, theirs = ((one.origins, one.targets, one.weights) for one in (self, other))
        return all(map(np.array_equal, mine, theirs))

    def mean(self, values: NDArray[np.float64]) -> float:
        """The weighted mean of (R,) values, those that are NaN left out; NaN when all are."""
        known = ~np.isnan(values)
        if not known.any():
            return float("nan")
        return float(np.average(values[known], weights=self.weights[known]))

    def motions(self, count: int) -> NDArray[np.float64]:
        """(R, count): one_hot(target) − one_hot(origin), what happened in each."""
        return motions_between(self.origins, self.targets, count)


def motions_between(origins: NDArray[np.intp], targets: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """(R, count): one_hot(target) − one_hot(origin)."""
    units = np.eye(count)
    return np.asarray(units[targets] - units[origins])


def rehearse(steps: Sequence[float], target_step: float) -> Rehearsals:
    """The rehearsals for predicting ``target_step`` from the K ``steps``; may be none.

    Weights fall off with the distance of the horizons, and grow with the step of the origin: what came late
    says more of what follows.
    """
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    empty = np.zeros(0, dtype=np.intp)
    if len(steps) < 3 or target_step <= steps[-1]:
        return Rehearsals(empty, empty, np.zeros(0))
    origins, targets = np.triu_indices(len(steps), 1)
    origins, targets = origins[origins > 0], targets[origins > 0]
    horizon = (target_step - steps[-1]) / times[-1]
    distance = np.log((times[targets] - times[origins]) / times[origins] / horizon) / HORIZON_WIDTH
    near = np.abs(distance) <= FARTHEST
    weights = np.exp(-0.5 * distance[near] ** 2) * times[origins[near]] / times[-1]
    return Rehearsals(origins[near], targets[near], weights)


def most_rehearsals(steps: Sequence[float]) -> int:
    """How many `rehearse` gives at most, of whatever first part of these steps and whatever target."""
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    origins, targets = np.triu_indices(len(steps), 1)
    origins, targets = origins[origins > 0], targets[origins > 0]
    logs = np.sort(np.log((times[targets] - times[origins]) / times[origins]))
    width = 2 * FARTHEST * HORIZON_WIDTH + 1e-9
    within = np.searchsorted(logs, logs + width, side="right") - np.arange(len(logs))
    return int(within.max(initial=0))


def longest_horizon(steps: Sequence[float]) -> float:
    """The longest relative horizon that the past of K ``steps`` has seen; 0 with fewer than three."""
    if len(steps) < 3:
        return 0.0
    return (steps[-1] - steps[1]) / (steps[1] - steps[0])


def farthest_horizon(steps: Sequence[float]) -> float:
    """Up to which `rehearse` finds anything beyond the `longest_horizon`."""
    return longest_horizon(steps) * math.exp(FARTHEST * HORIZON_WIDTH)


def denoised_gram(gram_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K, K): what to fit to. The Gram matrix itself; its `leading_subspace` where rounding prevails.

    Between the two `ROUNDED` shares the one passes into the other, so that no method jumps.
    """
    return mixed_gram(gram_matrix, rounding_share(gram_matrix), partial(leading_subspace, gram_matrix))


def mixed_gram(
    gram_matrix: NDArray[np.float64],
    rounding: NDArray[np.float64],
    signal: Callable[[], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """`denoised_gram`, from its `rounding_share` and its `leading_subspace`, where that is needed."""
    low, high = ROUNDED
    share = np.clip((rounding - low) / (high - low), 0.0, 1.0)[..., None, None]
    if not share.any():
        return gram_matrix
    return np.asarray((1.0 - share) * gram_matrix + share * signal())


def leading_subspace(gram_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K, K): the Gram matrix of the motion along its two leading temporal directions.

    Rounding to 16 bits adds to every checkpoint noise of its own, spread over all directions; two of them
    hold next to none of it, and nearly all that a run does (0.98 to 1.00 on the runs measured).
    """
    return gram_along(leading_directions(gram_matrix))


def leading_directions(gram_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K, 2): where every checkpoint is along the two leading temporal directions."""
    values, vectors = np.linalg.eigh(gram_matrix)
    sizes = np.sqrt(np.maximum(values[..., None, -SIGNAL_RANK:], 0.0))
    return np.asarray(vectors[..., -SIGNAL_RANK:] * sizes)


def gram_along(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K, K): the inner products of places along some directions, (…, K, D)."""
    return np.asarray(directions @ np.swapaxes(directions, -1, -2))


def rounding_share(gram_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…): the share of the motion between neighbouring checkpoints that is white noise; 0 for fewer than 4.

    Noise of variance v in every checkpoint makes the smallest eigenvalue of the centred Gram matrix v, and
    adds 2v to every squared distance: 1 for noise alone. Training moves on from where it is, and gave .00 to
    .10 on five runs in float32 (a random walk would give .5); runs in bfloat16 whose updates are
    smaller than the rounding gave .40 to .55.
    """
    count = gram_matrix.shape[-1]
    if count < 4:
        return np.zeros(gram_matrix.shape[:-2])
    motion = np.diagonal(squared_distances(gram_matrix), 1, -2, -1).mean(axis=-1)
    centre = np.eye(count) - 1.0 / count
    smallest = np.maximum(np.linalg.eigvalsh(centre @ gram_matrix @ centre)[..., 1], 0.0)
    return np.asarray(np.divide(2.0 * smallest, motion, out=np.zeros_like(motion), where=motion > 0))


def squared_distances(gram_matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…, K, K): ‖W_i − W_j‖² of every pair of checkpoints, not below 0."""
    norms = np.diagonal(gram_matrix, axis1=-2, axis2=-1)
    return np.asarray(np.maximum(norms[..., :, None] + norms[..., None, :] - 2.0 * gram_matrix, 0.0))


class Dampings:
    """λ from 0 to 1 that serve rehearsals best, in closed form: Σ⟨d, y⟩/Σ⟨d, d⟩ in relative units."""

    def __init__(
        self, rehearsals: Rehearsals, displacements: NDArray[np.float64], gram: NDArray[np.float64]
    ) -> None:
        """
        Args:
            displacements: (…, R, K) coefficients d of the undamped displacements from each origin; NaN where
                the method could not serve.
            gram: (…, K, K), or (K, K) for all, `denoised_gram`.
        """
        self._origins, targets = rehearsals.origins, rehearsals.targets
        unknown: NDArray[np.bool_] = np.asarray(np.isnan(displacements).any(axis=-1))
        moved = np.where(unknown[..., None], 0.0, displacements) if unknown.any() else displacements
        products = moved @ gram
        rows = np.arange(len(rehearsals))
        towards = products[..., rows, targets] - products[..., rows, self._origins]
        products *= moved
        squares = products.sum(axis=-1)
        norms = np.diagonal(gram, axis1=-2, axis2=-1)
        size = norms[..., self._origins] + norms[..., targets] - 2.0 * gram[..., self._origins, targets]
        size = np.maximum(size, 0.0) + squares
        weights = np.divide(rehearsals.weights * ~unknown, size, out=np.zeros_like(squares), where=size > 0)
        self._above, self._below = weights * towards, weights * squares

    def best(self) -> NDArray[np.float64]:
        """(…): one λ per Gram matrix; 0 where nothing moved."""
        return _share(self._above.sum(axis=-1), self._below.sum(axis=-1))

    def left_out(self) -> NDArray[np.float64]:
        """(…, R): in each rehearsal, the λ that serves those of other origins; NaN without any."""
        origins, numbers = np.unique(self._origins, return_inverse=True)
        if len(origins) < 2:
            return np.full_like(self._above, np.nan)
        others = (self._origins[:, None] != origins).astype(np.float64)
        above, below = ((one[..., None, :] @ others)[..., 0, :] for one in (self._above, self._below))
        return _share(above, below).take(numbers, axis=-1)


def _share(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.divide(above, below, out=np.zeros_like(below), where=below > 0), 0.0, 1.0))
