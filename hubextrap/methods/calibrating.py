"""`calibrated`: how far along each of a few lines to go, learnt from the run's own past."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import in_words
from hubextrap.errors import MethodError
from hubextrap.methods.rehearsal import Rehearsals, longest_horizon, rehearse, squared_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WINDOWS = (0.0, 0.5, 0.75)
"""Where the fitted lines begin, as shares of the observed way: all of it, its last half, its last quarter."""
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
    if target_step <= steps[-1]:
        return np.zeros(gram.shape[:-1])
    rehearsals = rehearse(steps, target_step)
    if not len(rehearsals):
        raise MethodError(_beyond_the_past(steps, target_step))
    directions = slopes(tuple(steps))
    left, right = _normal_equations(steps, rehearsals, directions, gram)
    beta = _solve(left.sum(axis=-3), right.sum(axis=-2))
    return np.asarray((target_step - steps[-1]) * (beta @ directions[-1]))


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
    directions = slopes(tuple(steps))
    left, right = _normal_equations(steps, rehearsals, directions, gram)
    all_left, all_right = left.sum(axis=-3), right.sum(axis=-2)
    times = np.asarray(steps, dtype=np.float64)
    result = np.zeros((*gram.shape[:-2], len(rehearsals), len(steps)))
    all_origins = np.unique(rehearsals.origins)
    if len(all_origins) < 2:
        return np.full_like(result, np.nan)
    for origin in all_origins:
        own = np.flatnonzero(rehearsals.origins == origin)
        beta = _solve(
            all_left - left[..., own, :, :].sum(axis=-3), all_right - right[..., own, :].sum(axis=-2)
        )
        way = (times[rehearsals.targets[own]] - times[origin])[:, None]
        result[..., own, :] = way * (beta @ directions[origin])[..., None, :]
    return result


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


def _normal_equations(
    steps: Sequence[float], rehearsals: Rehearsals, directions: NDArray[np.float64], gram: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(…, R, M, M) and (…, R, M): each rehearsal's share, divided by the sizes of its motions squared.

    The size is that of the real motion plus the mean size of the lines' motions, so that a checkpoint which
    hardly moved does not outweigh all others.
    """
    times = np.asarray(steps, dtype=np.float64)
    origins, targets = rehearsals.origins, rehearsals.targets
    way = times[targets] - times[origins]
    products = directions @ gram[..., None, :, :]
    squares = (products @ np.swapaxes(directions, -1, -2))[..., origins, :, :] * way[:, None, None] ** 2
    motions = products[..., origins, :, targets] - products[..., origins, :, origins]  # (R, …, M)
    towards = np.moveaxis(motions, 0, -2) * way[:, None]
    size = squared_distances(gram)[..., origins, targets]
    size = size + np.trace(squares, axis1=-2, axis2=-1) / squares.shape[-1]
    scale = np.divide(rehearsals.weights, size, out=np.zeros_like(size), where=size > 0)
    return squares * scale[..., None, None], towards * scale[..., None]


def _solve(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ridge solution (…, M); 0 where nothing moved."""
    count = left.shape[-1]
    penalty = RIDGE * np.trace(left, axis1=-2, axis2=-1) / count
    penalty = np.where(penalty > 0, penalty, 1.0)
    shifted = left + penalty[..., None, None] * np.eye(count)
    return np.asarray(np.linalg.solve(shifted, right[..., None])[..., 0])
