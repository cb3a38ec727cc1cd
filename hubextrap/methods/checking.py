"""From a method's name and parameters to checked coefficients: the one way in for everybody above."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError, StepError
from hubextrap.methods.lines import persistence, sum_to_one
from hubextrap.methods.registry import find_method, parameter_problems

if TYPE_CHECKING:
    from numpy.typing import NDArray


def coefficients(
    method: str,
    steps: Sequence[int],
    target_step: float,
    parameters: Mapping[str, object] | None = None,
    *,
    damping: float = 1.0,
    gram_matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Coefficients c of ``method``, so that the prediction of a tensor is Σ c_k·W_k.

    Args:
        method: a registered name.
        steps: K observed training steps, strictly increasing.
        target_step: the step to predict, not before the last observed one.
        parameters: the method's own, by name.
        damping: λ from 0 to 1: the result is (1−λ)·one_hot(last) + λ·c, so 1 leaves the method as it is.
        gram_matrix: K×K inner products of the tensor's deltas, for the methods that ask for it.

    Returns:
        K float64 values, finite, with sum 1.

    Raises:
        StepError: steps out of order or twice, or the target before the last one.
        MethodError: unknown method or parameter, a wrong value, or a method that broke its promise.
    """
    found = find_method(method)
    values = dict(parameters or {})
    problems = parameter_problems(method, values)
    if problems:
        raise MethodError("; ".join(f"{name}: {problem}" for name, problem in problems))
    if isinstance(damping, bool) or not 0.0 <= damping <= 1.0:
        raise MethodError(
            f"damping: must be a number from 0 (persistence) to 1 (no damping), not {damping!r}"
        )
    _check_steps(steps, target_step)
    if found.needs_gram_matrix:
        if gram_matrix is None:
            raise MethodError(f"{method} needs the Gram matrix of every tensor, and none was computed")
        values["gram_matrix"] = gram_matrix
    result = _checked(found.function(steps, target_step, **values), method, len(steps))
    if damping < 1.0:
        result = (1.0 - damping) * persistence(steps, target_step) + damping * result
    return sum_to_one(result)


def _check_steps(steps: Sequence[int], target_step: float) -> None:
    if not steps:
        raise StepError("no checkpoints: a prediction needs at least one")
    for before, after in pairwise(steps):
        if after <= before:
            raise StepError(
                f"step {after} follows step {before}: steps have to increase, and none may come twice"
            )
    if not math.isfinite(target_step) or target_step < steps[-1]:
        raise StepError(
            f"target step {target_step:g} is before the last observed step {steps[-1]}; "
            "choose a later target, or observe less of the run with trajectory.steps.max"
        )


def _checked(result: NDArray[np.float64], method: str, count: int) -> NDArray[np.float64]:
    values = np.asarray(result, dtype=np.float64)
    if values.shape != (count,):
        raise MethodError(f"{method} returned coefficients of shape {values.shape} for {count} checkpoints")
    if not np.isfinite(values).all():
        raise MethodError(f"{method} returned coefficients that are not finite: {values.tolist()}")
    total = math.fsum(values)
    # Coefficients of ±1e6 cancel to 1 within 1e-10; anything coarser is not rounding.
    if abs(total - 1.0) > 1e-12 * max(1.0, float(np.abs(values).max())) * count:
        raise MethodError(f"{method} returned coefficients that sum to {total!r}, not 1")
    return values
