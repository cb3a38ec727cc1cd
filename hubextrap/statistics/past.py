"""What a trajectory's own past says about a rule: its errors at every earlier origin.

All of it comes from Gram matrices: for coefficients a and b that each sum to 1, ‖Σ a_k·W_k − Σ b_k·W_k‖² is
(a−b)ᵀ·G·(a−b), summed over the tensors. What was observed behind an origin never enters what is said at it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods import Rehearsals, persistence, rehearse
from hubextrap.methods.checking import Prediction, needs_gram_matrix, predictor, unless_it_cannot
from hubextrap.methods.registry import checked_method
from hubextrap.methods.rehearsal import Dampings, gram_along, mixed_gram
from hubextrap.statistics.measures import Measure, MeasureOfEach, SignalOfEach, Spectra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hubextrap.methods import Rule
    from hubextrap.methods.rules import FirstMatch
    from hubextrap.statistics.table import GramTable


class Past:
    """The rehearsals of one rule on some tensors of a trajectory.

    It is quick where what is asked of one origin, or of one last checkpoint, is asked in a row.
    """

    def __init__(
        self,
        rule: Rule,
        table: GramTable,
        rows: Sequence[int],
        spectra: Spectra | None = None,
        of_each: bool = False,
    ) -> None:
        """
        Args:
            rows: the N tensors that the rule takes, of a table of K checkpoints.
            spectra: where to look for what others that have the same table asked before.
            of_each: squares are told tensor by tensor, not summed.

        Raises:
            MethodError: no such method, or wrong parameters.
        """
        self.rule, self.rows, self.steps, self.gram = rule, rows, table.times, table.gram[rows]
        self._names = tuple(table.tensors[row] for row in rows)
        self._spectra = Spectra() if spectra is None else spectra
        self._of_each = of_each
        self._method = checked_method(rule.method, rule.parameters)
        self._reads_gram = needs_gram_matrix(rule.method, rule.parameters)
        self._known: dict[tuple[int, float], NDArray[np.float64] | None] = {}
        self._predictions: tuple[int, Callable[[float], NDArray[np.float64]] | None] = (-1, None)
        self._denoised: tuple[int, NDArray[np.float64]] = (-1, self.gram)
        self._dampings: tuple[int, Rehearsals, Dampings] | None = None
        self._measures: dict[tuple[int, bool], tuple[Measure | SignalOfEach, ...]] = {}
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
        """(R,) each, or (R, N): squares of errors and of motions; where ``rounded``, of the signal too."""
        if self._method.leave_one_out is not None or self.rule.damping == "auto":
            return self._squares_of(rehearsals, last, rounded)
        # each rehearsal is the same, whatever it rehearses
        asked_at = last if rounded else len(self.steps) - 1
        if self._squares[0] != asked_at:
            shape: tuple[int, ...] = (4 if rounded else 2, len(self.steps), len(self.steps))
            shape = (*shape, len(self.gram)) if self._of_each else shape
            self._squares = asked_at, np.full(shape, np.inf)
        table, origins, targets = self._squares[1], rehearsals.origins, rehearsals.targets
        new = np.isinf(table[1, origins, targets])
        new = new[:, 0] if self._of_each else new
        if new.any():
            some = Rehearsals(origins[new], targets[new], rehearsals.weights[new])
            table[:, some.origins, some.targets] = self._squares_of(some, last, rounded)
        return list(table[:, origins, targets])

    def measures(self, count: int, rounded: bool) -> tuple[Measure | SignalOfEach, ...]:
        """Of all that the first checkpoints hold and, where ``rounded``, of the signal in it."""
        key = (count, rounded)
        if key not in self._measures:
            gram = self.gram[:, :count, :count]
            found: list[Measure | SignalOfEach] = [
                MeasureOfEach(gram) if self._of_each else Measure(gram),
            ]
            if rounded:
                along = self._spectra.directions(self._names, gram)
                found.append(SignalOfEach(along) if self._of_each else Measure(gram_along(along)))
            # the latest, and those of all checkpoints
            kept = {known: one for known, one in self._measures.items() if known[0] == len(self.steps)}
            self._measures = {**kept, key: tuple(found)}
        return self._measures[key]

    def _squares_of(self, rehearsals: Rehearsals, last: int, rounded: bool) -> list[NDArray[np.float64]]:
        errors = self.rehearsed(rehearsals, last) - rehearsals.motions(last + 1)
        origins, targets = rehearsals.origins, rehearsals.targets
        found = []
        for measure in self.measures(last + 1, rounded):
            found += [measure.squares(errors), measure.motions(origins, targets)]
        return found

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
            gram = self.gram[:, :count, :count]
            rounding = self._spectra.rounding(self._names, gram)
            along = partial(self._spectra.directions, self._names, gram)
            self._denoised = count, mixed_gram(gram, rounding, lambda: gram_along(along()))
        return self._denoised[1]


def pasts(
    first: FirstMatch, table: GramTable, spectra: Spectra | None = None, of_each: bool = False
) -> list[Past]:
    """One per rule that takes a tensor of the table. Args: as `Past`."""
    rows = [list[int]() for _ in first.rules]
    for row, name in enumerate(table.tensors):
        if (index := first(name)) is not None:
            rows[index].append(row)
    both = zip(first.rules, rows, strict=True)
    return [Past(rule, table, taken, spectra, of_each) for rule, taken in both if taken]
