"""From a method's name and parameters to checked coefficients: the one way in for everybody above."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from hubextrap.errors import MethodError, StepError
from hubextrap.methods.lines import on_grid, persistence, sum_to_one
from hubextrap.methods.registry import find_method, parameter_problems
from hubextrap.methods.rehearsal import Rehearsals, rehearse, squared_distances, without_rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAX_STEP = 2**53
"""A step beyond it is none: float64 does not hold every whole number there."""


def coefficients(
    method: str,
    steps: Sequence[int],
    target_step: float,
    parameters: Mapping[str, object] | None = None,
    *,
    damping: float | Literal["auto"] = 1.0,
    gram_matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Coefficients c of ``method``, so that the prediction of a tensor is Σ c_k·W_k.

    Args:
        method: a registered name.
        steps: K observed training steps, strictly increasing.
        target_step: the step to predict, not before the last observed one.
        parameters: the method's own, by name.
        damping: λ from 0 to 1: the result is (1−λ)·one_hot(last) + λ·c, so 1 leaves the method as it is.
            ``auto``: the λ that would have served the run's own past best.
        gram_matrix: K×K inner products of the tensor's deltas, where `needs_gram_matrix` says so.

    Returns:
        K float64 values, finite, with sum 1; multiples of `GRID` where they follow from weights, so that
        they are the same on every processor.

    Raises:
        StepError: steps out of order or twice, or the target before the last one.
        MethodError: unknown method or parameter, a wrong value, or a method that broke its promise.
    """
    found = find_method(method)
    values = dict(parameters or {})
    problems = parameter_problems(method, values)
    if problems:
        raise MethodError("; ".join(f"{name}: {problem}" for name, problem in problems))
    if damping != "auto" and (
        isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0.0 <= damping <= 1.0
    ):
        raise MethodError(
            f"damping: must be a number from 0 (persistence) to 1 (no damping) or auto, not {damping!r}"
        )
    check_steps(steps, target_step)
    fitted = needs_gram_matrix(method, values, damping)
    if gram_matrix is None and fitted:
        raise MethodError(f"{method} needs the Gram matrix of every tensor, and none was computed")
    if found.takes_gram_matrix:
        values["gram_matrix"] = gram_matrix
    result = _checked(found.function(steps, target_step, **values), method, len(steps))
    if damping == "auto":
        assert gram_matrix is not None
        damping = _auto_damping(method, steps, target_step, parameters, gram_matrix)
    if damping < 1.0:
        result = (1.0 - damping) * persistence(steps, target_step) + damping * result
    return sum_to_one(on_grid(result) if fitted else result)


def needs_gram_matrix(
    method: str, parameters: Mapping[str, object] | None = None, damping: object = 1.0
) -> bool:
    """Whether the coefficients of a method with these parameters depend on the weights.

    Raises:
        MethodError: no such method.
    """
    found = find_method(method)
    some_auto = found.takes_gram_matrix and "auto" in (parameters or {}).values()
    return found.needs_gram_matrix or some_auto or damping == "auto"


def best_damping(
    rehearsals: Rehearsals, displacements: NDArray[np.float64], gram: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The λ from 0 to 1 that serves the rehearsals best, in closed form: Σ⟨d, y⟩/Σ⟨d, d⟩ in relative units.

    Args:
        displacements: (…, R, K) coefficients d of the undamped displacements from each origin; NaN where the
            method could not serve.
        gram: (…, K, K), or (K, K) for all, `without_rounding`.

    Returns:
        (…): one λ a Gram matrix; 0 where nothing moved.
    """
    known = np.asarray(~np.isnan(displacements).any(axis=-1))
    moved = np.where(known[..., None], displacements, 0.0)
    motions = np.zeros((len(rehearsals), gram.shape[-1]))
    rows = np.arange(len(rehearsals))
    motions[rows, rehearsals.targets] = 1.0
    motions[rows, rehearsals.origins] -= 1.0
    products = moved @ gram
    squares, towards = (products * moved).sum(axis=-1), (products * motions).sum(axis=-1)
    size = squared_distances(gram)[..., rehearsals.origins, rehearsals.targets] + squares
    weights = np.divide(rehearsals.weights * known, size, out=np.zeros_like(squares), where=size > 0)
    below = (weights * squares).sum(axis=-1)
    above = (weights * towards).sum(axis=-1)
    return np.asarray(np.clip(np.divide(above, below, out=np.zeros_like(below), where=below > 0), 0.0, 1.0))


def _auto_damping(
    method: str,
    steps: Sequence[int],
    target_step: float,
    parameters: Mapping[str, object] | None,
    gram_matrix: NDArray[np.float64],
) -> float:
    rehearsals = rehearse(steps, target_step)
    displacements = np.full((len(rehearsals), len(steps)), np.nan)
    for row, (origin, target) in enumerate(zip(rehearsals.origins, rehearsals.targets, strict=True)):
        count = int(origin) + 1
        try:
            found = coefficients(
                method, steps[:count], steps[target], parameters, gram_matrix=gram_matrix[:count, :count]
            )
        except MethodError:  # e.g. its base_step lies behind this origin
            continue
        displacements[row] = 0.0
        displacements[row, :count] = found - persistence(steps[:count], steps[target])
    if np.isnan(displacements).all():
        raise MethodError(
            f"damping: auto has nothing to choose by: {len(steps)} checkpoints up to step {steps[-1]} hold "
            f"no prediction as far as step {target_step:g}; give a number, or a nearer target"
        )
    return float(best_damping(rehearsals, displacements, without_rounding(gram_matrix)))


def check_steps(steps: Sequence[int], target_step: float) -> None:
    """Refuse steps out of order or twice, and a target before the last one.

    Raises:
        StepError: names them.
    """
    if not steps:
        raise StepError("no checkpoints: a prediction needs at least one")
    for before, after in pairwise(steps):
        if after <= before:
            raise StepError(
                f"step {after} follows step {before}: steps have to increase, and none may come twice"
            )
    if max(target_step, steps[-1]) > MAX_STEP and target_step != math.inf:
        raise StepError(f"a step has to be at most {MAX_STEP}: beyond, not every whole number can be told")
    if not math.isfinite(target_step) or target_step < steps[-1]:
        raise StepError(
            f"target step {target_step:g} is before the last observed step {steps[-1]}; choose "
            "a later target, or leave out the checkpoints behind it (trajectory.steps.max, where the recipe "
            "names a run)"
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
