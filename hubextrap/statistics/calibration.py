"""What a trajectory's own past says about a rule: its errors at every earlier origin.

All of it comes from Gram matrices: for coefficients a and b that each sum to 1, ‖Σ a_k·W_k − Σ b_k·W_k‖² is
(a−b)ᵀ·G·(a−b), summed over the tensors. Errors are relative: divided by the distance from the origin's
checkpoint to the target's, which is the error of `persistence`. What was observed behind an origin never
enters what is said at it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods import denoised_gram, leading_subspace, on_grid, persistence, rehearse, rounding_share
from hubextrap.methods.checking import call_fitted, call_leave_one_out, unless_it_cannot
from hubextrap.methods.registry import checked_method
from hubextrap.methods.rehearsal import ROUNDED, best_damping
from hubextrap.methods.rules import FirstMatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from hubextrap.methods import Rehearsals, Rule
    from hubextrap.statistics.table import GramTable


FIT_MEMORY = 48 * 2**20
"""Bytes that the rehearsals of some tensors may take at once."""
FIT_COPIES = 6
"""Arrays of the size of all rehearsed coefficients that are there at the same time."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The relative error to expect of a prediction, as the past has it."""

    total: float | None
    """Of all that the checkpoints hold; None when the past cannot say."""
    signal: float | None
    """Of the motion along the two leading directions of each tensor; None where rounding does not matter."""

    @property
    def relative_error(self) -> float | None:
        """The one to judge by: where rounding to 16 bits is much of the motion, the signal's."""
        return self.total if self.signal is None else self.signal


class Past:
    """The rehearsals of one rule on some tensors of a trajectory."""

    def __init__(self, rule: Rule, steps: Sequence[float], gram: NDArray[np.float64]) -> None:
        """
        Args:
            steps: K, or their times.
            gram: (N, K, K), one Gram matrix per tensor.

        Raises:
            MethodError: no such method, or wrong parameters.
        """
        self.rule, self.steps, self.gram = rule, steps, gram
        self._method = checked_method(rule.method, rule.parameters)
        self.undamped = replace(rule, damping=1.0)
        self._known: dict[tuple[int, float], NDArray[np.float64] | None] = {}

    def displacement(
        self, origin: int, target_step: float, fitted: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """(N or 1, K): the prediction of ``target_step`` from what ``origin`` knows, minus that checkpoint.

        None where the rule cannot serve.

        Args:
            fitted: (N, origin + 1, origin + 1), the Gram matrices up to there `denoised_gram`.
        """
        found = self._undamped(origin, target_step, fitted)
        if found is None:
            return None
        if self.rule.damping != "auto":
            return self.rule.damping * found
        rehearsals = rehearse(self.steps[: origin + 1], target_step)
        rehearsed = self._rehearsed_undamped(rehearsals)
        if not len(rehearsals) or np.isnan(rehearsed).all():
            return None
        damping = best_damping(rehearsals, rehearsed[..., : origin + 1], fitted)
        return damping[:, None] * found

    def rehearsed(
        self, rehearsals: Rehearsals, last: int, fitted: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(N or 1, R, K): what the rule would have predicted in each rehearsal, as `displacement`.

        What the rule fits to the past (by a method that offers ``leave_one_out``, or a damping of ``auto``)
        is fitted without the rehearsal's own origin, to all others up to checkpoint ``last``; other methods
        know the checkpoints up to the origin. NaN where the rule cannot serve.
        """
        count = last + 1
        if self._method.leave_one_out is not None:
            found = np.zeros((len(self.gram), len(rehearsals), len(self.steps)))
            seen = self.steps[:count], rehearsals, fitted, self.rule.parameters
            left_out = unless_it_cannot(partial(call_leave_one_out, self._method, *seen))
            found[..., :count] = np.nan if left_out is None else left_out
        else:
            found = self._rehearsed_undamped(rehearsals)
        if self.rule.damping != "auto":
            return self.rule.damping * found
        dampings = np.zeros((len(self.gram), len(rehearsals)))
        for origin in np.unique(rehearsals.origins):
            own = rehearsals.origins == origin
            others = replace(rehearsals, weights=np.where(own, 0.0, rehearsals.weights))
            if own.all():
                return np.full_like(dampings[..., None] * found, np.nan)
            dampings[:, own] = best_damping(others, found[..., :count], fitted)[:, None]
        return dampings[..., None] * found

    def _rehearsed_undamped(self, rehearsals: Rehearsals) -> NDArray[np.float64]:
        rows = [
            self._undamped(int(origin), self.steps[target], None)
            for origin, target in zip(rehearsals.origins, rehearsals.targets, strict=True)
        ]
        tensors = max((len(row) for row in rows if row is not None), default=1)
        result = np.full((tensors, len(rehearsals), len(self.steps)), np.nan)
        for index, row in enumerate(rows):
            if row is not None:
                result[:, index] = row
        return result

    def _undamped(
        self, origin: int, target_step: float, fitted: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        key = (origin, target_step)
        if key not in self._known:
            self._known[key] = unless_it_cannot(partial(self._computed, origin, target_step, fitted))
        return self._known[key]

    def _computed(
        self, origin: int, target_step: float, fitted: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        count = origin + 1
        steps, gram = self.steps[:count], self.gram[:, :count, :count]
        if self._method.fitted:
            denoised = denoised_gram(gram) if fitted is None else fitted
            found = call_fitted(self._method, steps, target_step, denoised, self.rule.parameters)
        else:
            matrices = gram if self.undamped.needs_gram_matrix else None
            found = self.undamped.coefficients(steps, [target_step], matrices).reshape(-1, count)
            found = found - persistence(steps, target_step)
        return np.pad(found, ((0, 0), (0, len(self.steps) - count)))


def pasts(first: FirstMatch, table: GramTable) -> list[Past]:
    """One per rule that takes a tensor of the table."""
    rows = [list[int]() for _ in first.rules]
    for row, name in enumerate(table.tensors):
        if (index := first(name)) is not None:
            rows[index].append(row)
    both = zip(first.rules, rows, strict=True)
    return [Past(rule, table.times, table.gram[taken]) for rule, taken in both if taken]


def is_rounded(table: GramTable, dtypes: Iterable[str]) -> bool:
    """Whether rounding, not training, is much of what differs between neighbouring checkpoints.

    Both have to say so: the Gram matrix (alone, it could take a random walk for rounding) and the dtypes.

    Args:
        dtypes: safetensors names as stored, e.g. ``BF16`` or ``BF16/F32``.
    """
    short = any(dtype in ("BF16", "F16") for stored in dtypes for dtype in stored.split("/"))
    return short and float(rounding_share(table.total())) >= sum(ROUNDED) / 2


def expect_of_last(rules: Sequence[Rule], table: GramTable, target: float, rounded: bool) -> Expectation:
    """What all checkpoints say of predicting a time on the table's clock."""
    rehearsals, first = rehearse(table.times, target), FirstMatch(rules)
    sums = np.zeros((4, len(rehearsals)))
    for some in table.parts(tensors_at_once(table.times, [target])):
        parts = pasts(first, some)
        fitted = [denoised_gram(part.gram) for part in parts]
        sums += rehearsed_squares(parts, len(table.steps) - 1, rehearsals, rounded, fitted)
    return expectation(sums, rehearsals, rounded)


def fit_memory(steps: Sequence[float], targets: Iterable[float]) -> int:
    """Bytes that fitting to a table of these steps takes beside the table."""
    return max(FIT_MEMORY, _bytes_of_tensor(steps, targets))


def tensors_at_once(steps: Sequence[float], targets: Iterable[float]) -> int:
    """How many tensors to fit at the same time: `fit_memory` holds them."""
    return max(1, FIT_MEMORY // _bytes_of_tensor(steps, targets))


def _bytes_of_tensor(steps: Sequence[float], targets: Iterable[float]) -> int:
    rehearsals = max((len(rehearse(steps, target)) for target in targets), default=0)
    return 8 * FIT_COPIES * len(steps) * max(len(steps), rehearsals)


def rehearsed_squares(
    parts: Sequence[Past],
    last: int,
    rehearsals: Rehearsals,
    rounded: bool,
    fitted: Sequence[NDArray[np.float64]],
) -> NDArray[np.float64]:
    """(4, R): squares of errors and of motions, of all and of the signal; the latter 0 unless ``rounded``.

    What `expectation` reads; that of some tensors and that of others add up.

    Args:
        fitted: one per part, (N, last + 1, last + 1), `denoised_gram`.
    """
    count = last + 1
    sums = np.zeros((4, len(rehearsals)))
    if not len(rehearsals):
        return sums
    motions = rehearsals.motions(count)
    for part, fit in zip(parts, fitted, strict=True):
        errors = part.rehearsed(rehearsals, last, fit)[..., :count] - motions
        gram = part.gram[:, :count, :count]
        for row, one in enumerate([gram, leading_subspace(gram)] if rounded else [gram]):
            sums[2 * row : 2 * row + 2] += squares(errors, motions, one)
    return sums


def expectation(sums: NDArray[np.float64], rehearsals: Rehearsals, rounded: bool) -> Expectation:
    """What `rehearsed_squares` of all tensors come to."""
    total, real, signal_total, signal_real = sums
    expected = rehearsals.mean(relative(total, real))
    if np.isnan(expected):
        return Expectation(None, None)
    # it is written beside the weights, and has to be the same on every processor too
    of_signal = rehearsals.mean(relative(signal_total, signal_real)) if rounded else None
    return Expectation(float(on_grid(expected)), None if of_signal is None else float(on_grid(of_signal)))


def squares(
    errors: NDArray[np.float64], motions: NDArray[np.float64], gram: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, R): Σ over N tensors of the squares of errors (N or 1, R, K), and of those of motions (R, K)."""
    return np.stack([_summed_squares(errors, gram), _summed_squares(motions[None], gram)])


def _summed_squares(vectors: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,): Σ over N tensors of vᵀ·G·v, for vectors (N or 1, R, K) and Gram matrices (N, K, K)."""
    if len(vectors) == 1:
        gram = gram.sum(axis=0, keepdims=True)
    return np.asarray(np.maximum(((vectors @ gram) * vectors).sum(axis=(0, -1)), 0.0))


def relative(squares: NDArray[np.float64], real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root of the quotient; NaN where nothing moved."""
    return np.sqrt(np.divide(squares, real, out=np.full_like(squares, np.nan), where=real > 0))
