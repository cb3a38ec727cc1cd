"""`calibrated`: how far along each of a few lines to go, learnt from the run's own past."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hubextrap.clocks import in_words
from hubextrap.errors import MethodError
from hubextrap.methods.rehearsal import Rehearsals, longest_horizon, rehearse, squared_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WINDOWS = (0.0, 0.5, 0.75)
"""Where the fitted lines begin, as shares of the observed way: all of it, its last half, its last quarter."""
_Equations: TypeAlias = "tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]"
RIDGE = 0.2
"""Ridge penalty in units of the mean diagonal: towards 0, which is the last checkpoint itself."""


def calibrated(steps: Sequence[float], target_step: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last checkpoint plus what each of three lines has been worth so far.

    Displacements Σ_m β_m·d_m, where d_m are those of the least-squares lines through the last checkpoint over
    the whole run, its last half and its last quarter. β is a ridge regression over all `rehearse` pairs of
    observed checkpoints, in relative error.

    Args:
        gram: (…, K, K) inner products of each tensor's deltas, `denoised_gram`.

    Returns:
        (…, K), with sum 0: the coefficients are one_hot(last) + displacements.

    Raises:
        MethodError: the past has seen no horizon near this one.
    """
    return _Calibrated(steps, gram)(target_step)


@cache
def slopes(steps: tuple[float, ...]) -> NDArray[np.float64]:
    """(K, M, K): for every checkpoint taken as the last, M slopes per step as weights of the checkpoints.

    Row [j, m] is the slope of the least-squares line through checkpoint j over the checkpoints up to j that
    lie in window m (at least the one before j); it sums to 0. Row 0 has no past and is 0.
    """
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    result = np.zeros((len(steps), len(WINDOWS), len(steps)))
    for last in range(1, len(steps)):
        for index, window in enumerate(WINDOWS):
            start = min(int(np.searchsorted(times, window * times[last])), last - 1)
            offsets = times[start:last] - times[last]
            weights = offsets / (offsets @ offsets)
            result[last, index, start:last] = weights
            result[last, index, last] = -weights.sum()
    return result


def leave_one_out(
    steps: Sequence[float], rehearsals: Rehearsals, gram: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(…, R, K): the displacement predicted in each rehearsal by a fit without its origin.

    NaN where all rehearsals have one origin, so that none is left to fit.

    Args:
        gram: (…, K, K), `denoised_gram`.
    """
    return _Calibrated(steps, gram).leave_one_out(rehearsals)


class _Calibrated:
    """`calibrated` of some Gram matrices, for one target after another."""

    def __init__(self, steps: Sequence[float], gram: NDArray[np.float64]) -> None:
        """Args: gram: (…, K, K), `denoised_gram`."""
        self._steps = steps
        self._times = np.asarray(steps, dtype=np.float64)
        self._gram = gram
        self._directions = slopes(tuple(steps))
        count, lines = self._directions.shape[:2]
        of_lines = gram @ self._directions.reshape(-1, count).T
        self._products = of_lines.reshape(*gram.shape[:-2], count * count, lines)
        """(…, K·K, M): ⟨W_k, slope m up to checkpoint j⟩ in row k·K + j."""
        by_origin = np.moveaxis(of_lines.reshape(*gram.shape[:-1], count, lines), -3, -1)
        self._squares = np.ascontiguousarray(by_origin) @ np.swapaxes(self._directions, -1, -2)
        """(…, K, M, M): the slopes' inner products."""
        self._lengths = np.trace(self._squares, axis1=-2, axis2=-1) / lines
        """(…, K): the mean square of the slopes."""
        self._latest: tuple[Rehearsals, _Equations] | None = None
        self._distances = squared_distances(gram).reshape(*gram.shape[:-2], -1)

    def __call__(self, target_step: float) -> NDArray[np.float64]:
        steps = self._steps
        if target_step <= steps[-1]:
            return np.zeros(self._gram.shape[:-1])
        rehearsals = rehearse(steps, target_step)
        if not len(rehearsals):
            raise MethodError(_beyond_the_past(steps, target_step))
        _, left, right = self._equations_of(rehearsals)
        beta = _solve(left.sum(axis=-3), right.sum(axis=-2))
        return np.asarray((target_step - steps[-1]) * (beta @ self._directions[-1]))

    def leave_one_out(self, rehearsals: Rehearsals) -> NDArray[np.float64]:
        origins, left, right = self._equations_of(rehearsals)
        if len(origins) < 2:
            return np.full((*self._gram.shape[:-2], len(rehearsals), len(self._steps)), np.nan)
        all_left, all_right = left.sum(axis=-3, keepdims=True), right.sum(axis=-2, keepdims=True)
        beta = _solve(all_left - left, all_right - right)
        moved = (beta[..., None, :] @ self._directions[origins])[..., 0, :]
        way = self._times[rehearsals.targets] - self._times[rehearsals.origins]
        result = moved.take(np.searchsorted(origins, rehearsals.origins), axis=-2)
        result *= way[:, None]
        return result

    def _equations_of(self, rehearsals: Rehearsals) -> _Equations:
        """As `_normal_equations`: a prediction and its expected error ask for the same."""
        if self._latest is None or not self._latest[0].same_as(rehearsals):
            self._latest = rehearsals, self._normal_equations(rehearsals)
        return self._latest[1]

    def _normal_equations(self, rehearsals: Rehearsals) -> _Equations:
        """(O,) origins, and (…, O, M, M) and (…, O, M): what the rehearsals from each of them add.

        Each is divided by the sizes of its motions squared: that of the real motion plus the mean size of the
        lines' motions, so that a checkpoint which hardly moved does not outweigh all others.
        """
        origins, targets, count = rehearsals.origins, rehearsals.targets, len(self._steps)
        way = self._times[targets] - self._times[origins]
        towards = self._products.take(targets * count + origins, axis=-2)
        towards -= self._products.take(origins * count + origins, axis=-2)
        size = self._distances.take(origins * count + targets, axis=-1)
        size += way**2 * self._lengths.take(origins, axis=-1)
        scale = np.divide(rehearsals.weights * way, size, out=np.zeros_like(size), where=size > 0)
        towards *= scale[..., None]
        all_origins, firsts = np.unique(origins, return_index=True)  # those of one follow each other
        squares = self._squares.take(all_origins, axis=-3)
        squares *= np.add.reduceat(scale * way, firsts, axis=-1)[..., None, None]
        return all_origins, squares, np.add.reduceat(towards, firsts, axis=-2)


calibrated.prepared = _Calibrated  # type: ignore[attr-defined]
calibrated.leave_one_out = leave_one_out  # type: ignore[attr-defined]


def _beyond_the_past(steps: Sequence[float], target_step: float) -> str:
    """What to say of a horizon that no rehearsal is near."""
    if len(steps) < 3:
        return f"calibrated needs three checkpoints, but there are only {len(steps)}; add earlier ones"
    way, longest = steps[-1] - steps[0], longest_horizon(steps)
    horizon = (target_step - steps[-1]) / way
    forced = ", which force (--force of plan, merge and run) lets go so far" if horizon > longest else ""
    return (
        f"{in_words(steps, target_step)} is horizon {horizon:.3g}, (target − last)/(last − first). "
        f"The past of this run has no horizon near that (at most {longest:.3g}, here "
        f"{in_words(steps, round(steps[-1] + longest * way))}), so calibrated cannot predict it; "
        f"choose another target, or late_lines{forced}"
    )


def _solve(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ridge solution (…, M); 0 where nothing moved."""
    count = left.shape[-1]
    penalty = RIDGE * np.trace(left, axis1=-2, axis2=-1) / count
    penalty = np.where(penalty > 0, penalty, 1.0)
    shifted = left + penalty[..., None, None] * np.eye(count)
    return np.asarray(np.linalg.solve(shifted, right[..., None])[..., 0])
