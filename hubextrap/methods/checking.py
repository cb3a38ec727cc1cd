"""From a method's name and parameters to checked coefficients: the one way in for everybody above."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from hubextrap.errors import MethodError, StepError
from hubextrap.methods.calls import call_fitted, call_plain, unless_it_cannot
from hubextrap.methods.lines import on_grid, persistence, sum_to_one
from hubextrap.methods.registry import checked_method, find_method
from hubextrap.methods.rehearsal import Rehearsals, denoised_gram, rehearse, squared_distances

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
        gram_matrix: (…, K, K) inner products of each tensor's deltas, where `needs_gram_matrix` says so.

    Returns:
        (…, K) float64 values, finite, with sum 1; multiples of `GRID` where they follow from weights, so that
        they are the same on every processor.

    Raises:
        StepError: steps out of order or twice, or the target before the last one.
        MethodError: unknown method or parameter, a wrong value, or a method that broke its promises.
    """
    values = dict(parameters or {})
    found = checked_method(method, values)
    if damping != "auto" and (
        isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0.0 <= damping <= 1.0
    ):
        raise MethodError(
            f"damping: must be a number from 0 (persistence) to 1 (no damping) or auto, not {damping!r}"
        )
    check_steps(steps, target_step)
    depends = needs_gram_matrix(method, values, damping)
    if gram_matrix is None:
        if depends:
            raise MethodError(f"{method} needs the Gram matrix of every tensor, and none was computed")
    elif gram_matrix.ndim > 2 and not found.fitted:  # such a method takes one at a time
        one_each = [
            coefficients(method, steps, target_step, parameters, damping=damping, gram_matrix=matrix)
            for matrix in gram_matrix
        ]
        return np.stack(one_each)
    last = persistence(steps, target_step)
    if found.fitted:
        assert gram_matrix is not None
        result = last + call_fitted(found, steps, target_step, denoised_gram(gram_matrix), values)
    else:
        result = call_plain(found, steps, target_step, gram_matrix, values)
    share: NDArray[np.float64] | float
    if damping == "auto":
        assert gram_matrix is not None
        share = _auto_damping(method, steps, target_step, parameters, gram_matrix)[..., None]
    else:
        share = damping
    result = np.where(np.less(share, 1.0), (1.0 - share) * last + share * result, result)
    return sum_to_one(on_grid(result) if depends else result)


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
        gram: (…, K, K), or (K, K) for all, `denoised_gram`.

    Returns:
        (…): one λ per Gram matrix; 0 where nothing moved.
    """
    known = np.asarray(~np.isnan(displacements).any(axis=-1))
    moved = np.where(known[..., None], displacements, 0.0)
    motions = rehearsals.motions(gram.shape[-1])
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
) -> NDArray[np.float64]:
    """(…): one λ per Gram matrix of (…, K, K)."""
    rehearsals = rehearse(steps, target_step)
    displacements = np.full((*gram_matrix.shape[:-2], len(rehearsals), len(steps)), np.nan)
    for row, (origin, target) in enumerate(zip(rehearsals.origins, rehearsals.targets, strict=True)):
        count = int(origin) + 1
        seen = steps[:count], steps[target]
        found = unless_it_cannot(
            partial(coefficients, method, *seen, parameters, gram_matrix=gram_matrix[..., :count, :count])
        )
        if found is not None:  # else e.g. its base_step lies behind this origin
            displacements[..., row, :] = 0.0
            displacements[..., row, :count] = found - persistence(*seen)
    if np.isnan(displacements).all():
        raise MethodError(
            f"damping: auto has nothing to choose by: {len(steps)} checkpoints up to step {steps[-1]} hold "
            f"no prediction as far as step {target_step:g}; give a number, or a nearer target"
        )
    return best_damping(rehearsals, displacements, denoised_gram(gram_matrix))


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
