"""Calls of methods, whoever wrote them: what comes back is held to what a method promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hubextrap.errors import BrokenMethod, MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.methods.registry import Method
    from hubextrap.methods.rehearsal import Rehearsals

SUM_TOLERANCE = 1e-12
"""For each checkpoint, in units of the largest value: coefficients of ±1e6 cancel within 1e-10."""

_LARGEST = float(np.finfo(np.float32).max)
"""Tensors are summed in float32."""

Result = TypeVar("Result")


def unless_it_cannot(call: Callable[[], Result]) -> Result | None:
    """What ``call`` returns; None where a method says that it cannot serve: MethodError, not BrokenMethod."""
    try:
        return call()
    except BrokenMethod:
        raise
    except MethodError:
        return None


def call_plain(
    method: Method,
    steps: Sequence[int],
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
    found = _called(method, method.function, (steps, target_step), values)
    return _checked(found, method, "coefficients", (len(steps),), 1.0)


def call_fitted(
    method: Method,
    steps: Sequence[int],
    target_step: float,
    gram: NDArray[np.float64],
    values: Mapping[str, object],
) -> NDArray[np.float64]:
    """(…, K): the displacements of a fitted method for (…, K, K), `denoised_gram`; raises as `call_plain`."""
    found = _called(method, method.function, (steps, target_step, _read_only(gram)), values)
    return _checked(found, method, "displacements", gram.shape[:-1], 0.0)


def call_leave_one_out(
    method: Method,
    steps: Sequence[int],
    rehearsals: Rehearsals,
    gram: NDArray[np.float64],
    values: Mapping[str, object],
) -> NDArray[np.float64]:
    """(…, R, K): those in each rehearsal by its own ``leave_one_out``; rows of NaN where it cannot serve."""
    assert method.leave_one_out is not None
    found = _called(method, method.leave_one_out, (steps, rehearsals, _read_only(gram)), values)
    shape = (*gram.shape[:-2], len(rehearsals), len(steps))
    found = _checked(found, method, "displacements", shape, 0.0, gaps=True)
    behind = np.arange(len(steps)) > rehearsals.origins[:, None]
    if np.nan_to_num(found)[..., behind].any():
        raise BrokenMethod(f"{method.name} returned displacements by checkpoints behind a rehearsal's origin")
    return found


def _read_only(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gram.view()
    result.flags.writeable = False
    return result


def _called(
    method: Method, function: Callable[..., Any], arguments: tuple[Any, ...], values: Mapping[str, object]
) -> NDArray[np.float64]:
    try:
        found = np.asarray(function(*arguments, **values))
        if found.dtype.kind not in "biufO":
            raise TypeError(f"it returned {found.dtype}, not numbers")
        return found.astype(np.float64)
    except (MethodError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        steps = arguments[0]
        raise BrokenMethod(
            f"{method.name} failed on {len(steps)} checkpoints up to step {steps[-1]} "
            f"({type(error).__name__}: {error}); where it cannot serve, a method has to raise MethodError"
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
