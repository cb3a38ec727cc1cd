"""A fitted method of somebody else, without a leave-one-out of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hubextrap.errors import MethodError
from hubextrap.methods import rehearse


def slowing(
    steps: Sequence[int], target_step: float, gram: NDArray[np.float64], *, ridge: float = 0.1
) -> NDArray[np.float64]:
    """The line from the middle checkpoint to the last one, as far along it as the past says."""
    if target_step <= steps[-1]:
        return np.zeros(gram.shape[:-1])
    rehearsals = rehearse(steps, target_step)
    if not len(rehearsals):
        raise MethodError(f"slowing has seen nothing like step {target_step:g}")
    squares = np.full(gram.shape[:-2], 1e-300)
    towards = np.zeros(gram.shape[:-2])
    for origin, target, weight in zip(
        rehearsals.origins, rehearsals.targets, rehearsals.weights, strict=True
    ):
        line, motion = _line(steps, origin, steps[target]), np.zeros(len(steps))
        motion[target], motion[origin] = 1.0, -1.0
        squares += weight * (line @ gram @ line)
        towards += weight * (line @ gram @ motion)
    share = towards / ((1 + ridge) * squares)
    return np.asarray(share[..., None] * _line(steps, len(steps) - 1, target_step))


def _line(steps: Sequence[int], origin: int, target_step: float) -> NDArray[np.float64]:
    middle, result = origin // 2, np.zeros(len(steps))
    result[origin] = (target_step - steps[origin]) / (steps[origin] - steps[middle])
    result[middle] = -result[origin]
    return result
