"""From a method's name and parameters to checked coefficients: the one way in for everybody above.

Whoever wrote a method, what it returns is held to what a method promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from hubextrap.clocks import in_words, names_of
from hubextrap.errors import BrokenMethod, MethodError, StepError
from hubextrap.methods.lines import on_grid, persistence, sum_to_one
from hubextrap.methods.registry import Method, checked_method, find_method
from hubextrap.methods.rehearsal import Dampings, Rehearsals, denoised_gram, rehearse

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_STEP = 2**53
"""A step beyond it is none: float64 does not hold every whole number there."""
SUM_TOLERANCE = 1e-12
"""For each checkpoint, in units of the largest value: coefficients of ±1e6 cancel within 1e-10."""
_LARGEST = float(np.finfo(np.float32).max)
"""Tensors are summed in float32."""

Result = TypeVar("Result")


def coefficients(
    method: str,
    steps: Sequence[float],
    target_step: float,
    parameters: Mapping[str, object] | None = None,
    *,
    damping: float | Literal["auto"] = 1.0,
    gram_matrix: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Coefficients c of ``method``, so that the prediction of a tensor is Σ c_k·W_k.

    Args:
        method: a registered name.
        steps: K observed training steps, strictly increasing; or their times (`clocks.Timeline`).
        target_step: the step to predict, or its time; not before the last observed one.
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
            raise MethodError(f"{method} needs the Gram matrix of every tensor, but none was computed")
    elif gram_matrix.ndim > 2 and found.one_at_a_time:
        one_each = [
            coefficients(method, steps, target_step, parameters, damping=damping, gram_matrix=matrix)
            for matrix in gram_matrix
        ]
        return np.stack(one_each)
    last = persistence(steps, target_step)
    result = _undamped(found, steps, gram_matrix, values)(target_step)
    if gram_matrix is not None:
        result = np.broadcast_to(result, gram_matrix.shape[:-1])
    share: NDArray[np.float64] | float
    if damping == "auto":
        assert gram_matrix is not None
        share = _auto_damping(found, steps, target_step, values, gram_matrix)[..., None]
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


def _auto_damping(
    method: Method,
    steps: Sequence[float],
    target_step: float,
    values: Mapping[str, object],
    gram_matrix: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(…): one λ per Gram matrix of (…, K, K)."""
    rehearsals = rehearse(steps, target_step)
    displacements = np.full((*gram_matrix.shape[:-2], len(rehearsals), len(steps)), np.nan)
    for origin in np.unique(rehearsals.origins):
        seen = steps[: origin + 1]
        gram = gram_matrix[..., : origin + 1, : origin + 1]
        predict = unless_it_cannot(partial(predictor, method, seen, gram, values))
        if predict is None:
            continue
        for row in np.flatnonzero(rehearsals.origins == origin):
            target = steps[rehearsals.targets[row]]
            found = unless_it_cannot(partial(predict, target))
            if found is not None:  # else e.g. its base_step lies behind this origin
                displacements[..., row, :] = 0.0
                displacements[..., row, : origin + 1] = found - persistence(seen, target)
    if np.isnan(displacements).all():
        raise MethodError(
            f"damping: auto cannot choose: no prediction within the {len(steps)} checkpoints up to "
            f"step {names_of(steps)[-1]} reaches as far as {in_words(steps, target_step)}; give a "
            "number, or a nearer target"
        )
    return Dampings(rehearsals, displacements, denoised_gram(gram_matrix)).best()


def check_steps(steps: Sequence[float], target_step: float) -> None:
    """Refuse steps out of order or twice, and a target before the last one.

    Raises:
        StepError: names them.
    """
    if not steps:
        raise StepError("no checkpoints: a prediction needs at least one")
    for before, after in pairwise(steps):
        if after <= before:
            before, after = (names_of(steps)[steps.index(one)] for one in (before, after))
            raise StepError(
                f"step {after} comes after step {before}: steps must increase, and no step may come twice"
            )
    if max(target_step, steps[-1]) > MAX_STEP and target_step != math.inf:
        raise StepError(
            f"a step must be at most {MAX_STEP}: above it, float64 cannot tell every whole number from "
            "the next"
        )
    if not math.isfinite(target_step) or target_step < steps[-1]:
        raise StepError(
            f"target {in_words(steps, target_step)} is before the last observed step "
            f"{names_of(steps)[-1]}; choose a later target, or leave out the checkpoints after it "
            "(trajectory.steps.max, where the recipe names a run)"
        )


def unless_it_cannot(call: Callable[[], Result]) -> Result | None:
    """What ``call`` returns; None where a method says that it cannot serve: MethodError, not BrokenMethod."""
    try:
        return call()
    except BrokenMethod:
        raise
    except MethodError:
        return None


def predictor(
    method: Method,
    steps: Sequence[float],
    gram: NDArray[np.float64] | None,
    values: Mapping[str, object],
) -> Callable[[float], NDArray[np.float64]]:
    """`coefficients` of a checked method, undamped, for one target after another.

    Raises:
        MethodError: the method cannot serve.
        BrokenMethod: it failed.
    """
    predict = _undamped(method, steps, gram, values)
    if not needs_gram_matrix(method.name, values):
        return lambda target_step: sum_to_one(predict(target_step))
    return lambda target_step: sum_to_one(on_grid(predict(target_step)))


def _undamped(
    method: Method,
    steps: Sequence[float],
    gram: NDArray[np.float64] | None,
    values: Mapping[str, object],
) -> Callable[[float], NDArray[np.float64]]:
    """Coefficients as the method has them; (K,) where no weights count. Raises as `predictor`."""
    if not method.fitted:
        return Prediction(method, steps, gram, values)
    assert gram is not None
    predict = Prediction(method, steps, denoised_gram(gram), values)
    return lambda target_step: persistence(steps, target_step) + predict(target_step)


class Prediction:
    """What a method returns for one target after another, with the same checkpoints known."""

    def __init__(
        self,
        method: Method,
        steps: Sequence[float],
        gram: NDArray[np.float64] | None,
        values: Mapping[str, object],
    ) -> None:
        """
        Args:
            gram: (…, K, K), `denoised_gram` of a fitted method; None where it needs none.

        Raises:
            MethodError: it cannot serve.
            BrokenMethod: it failed.
        """
        self._method, self._steps, self._gram, self._values = method, steps, gram, values
        self._prepared: Any = None
        self._each: list[Prediction] = []
        if gram is None:
            return
        if method.one_at_a_time and gram.ndim > 2:
            self._each = [Prediction(method, steps, one, values) for one in gram]
        elif method.prepared is not None:
            self._prepared = _guarded(
                method, steps, partial(method.prepared, steps, _read_only(gram), **values)
            )

    def __call__(self, target_step: float) -> NDArray[np.float64]:
        """(…, K) coefficients, or displacements of a fitted method; raises as `call_plain`."""
        method, steps, gram = self._method, self._steps, self._gram
        if self._each:
            return np.stack([one(target_step) for one in self._each])
        if self._prepared is not None:
            assert gram is not None
            found = _called(method, steps, partial(self._prepared, target_step))
            what, total = ("displacements", 0.0) if method.fitted else ("coefficients", 1.0)
            return _checked(found, method, what, gram.shape[:-1], total)
        if method.fitted:
            assert gram is not None
            return call_fitted(method, steps, target_step, gram, self._values)
        return call_plain(method, steps, target_step, gram, self._values)

    def leave_one_out(self, rehearsals: Rehearsals) -> NDArray[np.float64]:
        """(…, R, K): those in each rehearsal by its ``leave_one_out``; rows of NaN where it cannot serve."""
        method, steps, gram = self._method, self._steps, self._gram
        assert method.leave_one_out is not None
        assert gram is not None
        call = partial(method.leave_one_out, steps, rehearsals, _read_only(gram), **self._values)
        if self._prepared is not None:
            call = partial(self._prepared.leave_one_out, rehearsals)
        found = _called(method, steps, call)
        shape = (*gram.shape[:-2], len(rehearsals), len(steps))
        found = _checked(found, method, "displacements", shape, 0.0, gaps=True)
        behind = np.arange(len(steps)) > rehearsals.origins[:, None]
        later = found[..., behind]
        if later.any() and np.nan_to_num(later).any():
            raise BrokenMethod(
                f"{method.name} returned displacements that use checkpoints after a rehearsal's origin"
            )
        return found


def call_plain(
    method: Method,
    steps: Sequence[float],
    target_step: float,
    gram_matrix: NDArray[np.float64] | None,
    values: Mapping[str, object],
) -> NDArray[np.float64]:
    """(K,): the coefficients that a method returns.

    Raises:
        MethodError: it cannot serve.
        BrokenMethod: it failed, or returned no coefficients.
    """
    if method.takes_gram_matrix:
        values = {**values, "gram_matrix": None if gram_matrix is None else _read_only(gram_matrix)}
    found = _called(method, steps, partial(method.function, steps, target_step, **values))
    return _checked(found, method, "coefficients", (len(steps),), 1.0)


def call_fitted(
    method: Method,
    steps: Sequence[float],
    target_step: float,
    gram: NDArray[np.float64],
    values: Mapping[str, object],
) -> NDArray[np.float64]:
    """(…, K): the displacements of a fitted method for (…, K, K), `denoised_gram`; raises as `call_plain`."""
    found = _called(method, steps, partial(method.function, steps, target_step, _read_only(gram), **values))
    return _checked(found, method, "displacements", gram.shape[:-1], 0.0)


def _read_only(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gram.view()
    result.flags.writeable = False
    return result


def _called(method: Method, steps: Sequence[float], call: Callable[[], object]) -> NDArray[np.float64]:
    """The numbers that a method's function returns."""

    def as_numbers() -> NDArray[np.float64]:
        found = np.asarray(call())
        if found.dtype.kind not in "biufO":
            raise TypeError(f"it returned {found.dtype}, not numbers")
        return found.astype(np.float64)

    return _guarded(method, steps, as_numbers)


def _guarded(method: Method, steps: Sequence[float], call: Callable[[], Result]) -> Result:
    """What ``call`` returns.

    Raises:
        MethodError: the method says that it cannot serve.
        BrokenMethod: it failed.
    """
    try:
        return call()
    except (MethodError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        raise BrokenMethod(
            f"{method.name} failed on {len(steps)} checkpoints up to step {names_of(steps)[-1]} "
            f"({type(error).__name__}: {error}); a method must raise MethodError where it cannot "
            "predict"
        ) from error


def _checked(
    values: NDArray[np.float64],
    method: Method,
    what: str,
    shape: tuple[int, ...],
    total: float,
    gaps: bool = False,
) -> NDArray[np.float64]:
    """``values``: finite, of that shape, with that sum; with ``gaps``, whole rows may be NaN."""
    returned = f"{method.name} returned {what}"
    if values.shape != shape:
        raise BrokenMethod(f"{returned} of shape {values.shape} for {shape[-1]} checkpoints, not {shape}")
    rows = values.reshape(-1, shape[-1])
    lowest, highest = values.min(initial=0.0), values.max(initial=0.0)
    if -_LARGEST <= lowest <= highest <= _LARGEST:
        off = np.abs(rows.sum(axis=-1) - total).max(initial=0.0)
        if off <= SUM_TOLERANCE * shape[-1]:
            return values  # without a look at each row: there are very many
    if gaps:
        rows = rows[~np.isnan(rows).all(axis=-1)]
    finite = (np.abs(rows) <= _LARGEST).all(axis=-1)
    if not finite.all():
        raise BrokenMethod(f"{returned} that are not finite in float32: {rows[~finite][0].tolist()}")
    sums, largest = rows.sum(axis=-1), np.abs(rows).max(axis=-1, initial=1.0)
    wrong = np.abs(sums - total) > SUM_TOLERANCE * largest * shape[-1]
    if wrong.any():
        raise BrokenMethod(f"{returned} that sum to {float(sums[wrong][0])!r}, not {total:g}")
    return values
