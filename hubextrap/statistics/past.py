"""What a trajectory's own past says about a rule: its errors at every earlier origin.

All of it comes from Gram matrices: for coefficients a and b that each sum to 1, ‖Σ a_k·W_k − Σ b_k·W_k‖² is
(a−b)ᵀ·G·(a−b), summed over the tensors. What was observed behind an origin never enters what is said at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods import Rehearsals, denoised_gram, leading_subspace, persistence, rehearse
from hubextrap.methods.checking import Prediction, needs_gram_matrix, predictor, unless_it_cannot
from hubextrap.methods.registry import checked_method
from hubextrap.methods.rehearsal import Dampings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hubextrap.methods import Rule
    from hubextrap.methods.rules import FirstMatch
    from hubextrap.statistics.table import GramTable


@dataclass(eq=False)
class Measure:
    """How long displacements of some tensors are."""

    gram: NDArray[np.float64]
    """(N, K, K)"""

    @cached_property
    def total(self) -> NDArray[np.float64]:
        """(1, K, K)"""
        return np.asarray(self.gram.sum(axis=0, keepdims=True))

    def squares(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,): Σ over the tensors of vᵀ·G·v, for vectors (N or 1, R, K)."""
        products = vectors @ (self.total if len(vectors) == 1 else self.gram)
        products *= vectors
        return np.asarray(np.maximum(products.sum(axis=(0, -1)), 0.0))


class Past:
    """The rehearsals of one rule on some tensors of a trajectory.

    It is quick where what is asked of one origin, or of one last checkpoint, is asked in a row.
    """

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
        self._reads_gram = needs_gram_matrix(rule.method, rule.parameters)
        self._known: dict[tuple[int, float], NDArray[np.float64] | None] = {}
        self._predictions: tuple[int, Callable[[float], NDArray[np.float64]] | None] = (-1, None)
        self._denoised: tuple[int, NDArray[np.float64]] = (-1, gram)
        self._dampings: tuple[int, Rehearsals, Dampings] | None = None
        self._measures: dict[tuple[int, bool], tuple[Measure, ...]] = {}
        self._squares: tuple[int, NDArray[np.float64]] = (-1, np.zeros(0))

    def displacement(self, origin: int, target_step: float) -> NDArray[np.float64] | None:
        """(N or 1, K): the prediction of ``target_step`` from what ``origin`` knows, minus that checkpoint.

        None where the rule cannot serve.
        """
        found = self._undamped(origin, target_step)
        if found is None:
            return None
        if self.rule.damping != "auto":
            return self.rule.damping * found
        rehearsals = rehearse(self.steps[: origin + 1], target_step)
        rehearsed = self._rehearsed_undamped(rehearsals)[..., : origin + 1]
        if not len(rehearsals) or np.isnan(rehearsed).all():
            return None
        return self._dampings_of(rehearsals, rehearsed, origin).best()[:, None] * found

    def rehearsed(self, rehearsals: Rehearsals, last: int) -> NDArray[np.float64]:
        """(N or 1, R, last + 1): what the rule would have predicted in each rehearsal, as `displacement`.

        What the rule fits to the past (by a method that offers ``leave_one_out``, or a damping of ``auto``)
        is fitted without the rehearsal's own origin, to all others up to checkpoint ``last``; other methods
        know the checkpoints up to the origin. NaN where the rule cannot serve.
        """
        count = last + 1
        if self._method.leave_one_out is None:
            found = self._rehearsed_undamped(rehearsals)[..., :count]
        else:
            left_out = unless_it_cannot(partial(self._left_out, rehearsals, last))
            found = np.full((1, len(rehearsals), count), np.nan) if left_out is None else left_out
        if self.rule.damping != "auto":
            return found if self.rule.damping == 1.0 else self.rule.damping * found
        return self._dampings_of(rehearsals, found, last).left_out()[..., None] * found

    def rehearsed_squares(
        self, rehearsals: Rehearsals, last: int, rounded: bool
    ) -> list[NDArray[np.float64]]:
        """(R,) each: squares of errors and of motions; where ``rounded``, those of the signal behind them."""
        if self._method.leave_one_out is not None or self.rule.damping == "auto":
            return self._squares_of(rehearsals, last, rounded)
        # each rehearsal is the same, whatever it rehearses
        asked_at = last if rounded else len(self.steps) - 1
        if self._squares[0] != asked_at:
            shape = (4 if rounded else 2, len(self.steps), len(self.steps))
            self._squares = asked_at, np.full(shape, -1.0)
        table, origins, targets = self._squares[1], rehearsals.origins, rehearsals.targets
        new = table[1, origins, targets] == -1.0
        if new.any():
            some = Rehearsals(origins[new], targets[new], rehearsals.weights[new])
            table[:, some.origins, some.targets] = self._squares_of(some, last, rounded)
        return list(table[:, origins, targets])

    def measures(self, count: int, rounded: bool) -> tuple[Measure, ...]:
        """Of all that the first checkpoints hold and, where ``rounded``, of the signal in it."""
        key = (count, rounded)
        if key not in self._measures:
            gram = self.gram[:, :count, :count]
            signal = (Measure(leading_subspace(gram)),) if rounded else ()
            # the latest, and those of all checkpoints
            kept = {known: found for known, found in self._measures.items() if known[0] == len(self.steps)}
            self._measures = {**kept, key: (Measure(gram), *signal)}
        return self._measures[key]

    def _squares_of(self, rehearsals: Rehearsals, last: int, rounded: bool) -> list[NDArray[np.float64]]:
        motions = rehearsals.motions(last + 1)
        errors = self.rehearsed(rehearsals, last) - motions
        both = (errors, motions[None])
        return [one.squares(some) for one in self.measures(last + 1, rounded) for some in both]

    def _rehearsed_undamped(self, rehearsals: Rehearsals) -> NDArray[np.float64]:
        """(N or 1, R, K)"""
        rows = [
            self._undamped(int(origin), self.steps[target])
            for origin, target in zip(rehearsals.origins, rehearsals.targets, strict=True)
        ]
        tensors = max((len(row) for row in rows if row is not None), default=1)
        result = np.full((tensors, len(rehearsals), len(self.steps)), np.nan)
        for index, row in enumerate(rows):
            if row is not None:
                result[:, index] = row
        return result

    def _undamped(self, origin: int, target_step: float) -> NDArray[np.float64] | None:
        """(N or 1, K), kept."""
        key = (origin, target_step)
        if key not in self._known:
            self._known[key] = unless_it_cannot(partial(self._computed, origin, target_step))
        return self._known[key]

    def _computed(self, origin: int, target_step: float) -> NDArray[np.float64]:
        count = origin + 1
        found = self._predicting_from(origin)(target_step).reshape(-1, count)
        result = np.zeros((len(found), len(self.steps)))
        result[:, :count] = found
        if not self._method.fitted:
            result[:, :count] -= persistence(self.steps[:count], target_step)
        return result

    def _left_out(self, rehearsals: Rehearsals, last: int) -> NDArray[np.float64]:
        predictions = self._predicting_from(last)
        assert isinstance(predictions, Prediction)
        return predictions.leave_one_out(rehearsals)

    def _predicting_from(self, origin: int) -> Callable[[float], NDArray[np.float64]]:
        """Coefficients, or displacements of a fitted method, of one target after another."""
        known_from, known = self._predictions
        if known_from != origin or known is None:
            steps, values = self.steps[: origin + 1], self.rule.parameters
            if self._method.fitted:
                known = Prediction(self._method, steps, self._fitted_to(origin + 1), values)
            else:
                gram = self.gram[:, : origin + 1, : origin + 1] if self._reads_gram else None
                known = predictor(self._method, steps, gram, values)
            self._predictions = origin, known
        return known

    def _dampings_of(self, rehearsals: Rehearsals, found: NDArray[np.float64], last: int) -> Dampings:
        """Args: found: (N or 1, R, last + 1), what was predicted without damping."""
        if self._method.leave_one_out is not None:  # what a fitted one says in rehearsals differs
            return Dampings(rehearsals, found, self._fitted_to(last + 1))
        if self._dampings is None or self._dampings[0] != last or not self._dampings[1].same_as(rehearsals):
            self._dampings = last, rehearsals, Dampings(rehearsals, found, self._fitted_to(last + 1))
        return self._dampings[2]

    def _fitted_to(self, count: int) -> NDArray[np.float64]:
        """(N, count, count): what the first checkpoints give to fit to."""
        if self._denoised[0] != count:
            self._denoised = count, denoised_gram(self.gram[:, :count, :count])
        return self._denoised[1]


def pasts(first: FirstMatch, table: GramTable) -> list[Past]:
    """One per rule that takes a tensor of the table."""
    rows = [list[int]() for _ in first.rules]
    for row, name in enumerate(table.tensors):
        if (index := first(name)) is not None:
            rows[index].append(row)
    both = zip(first.rules, rows, strict=True)
    return [Past(rule, table.times, table.gram[taken]) for rule, taken in both if taken]
