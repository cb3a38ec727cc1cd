"""Standard errors of what Gram matrices say that were estimated from a sample of the weights.

The jackknife, stratified by tensor (Wolter, Introduction to Variance Estimation, 2nd ed., ch. 4.5): a
tensor's sample is `GROUPS` groups of weights, and what a figure is without each of them tells how far it may
be off. Methods are fitted anew without each group, as what they fit is an estimate too. A figure of all
tensors is linearised: it is a function of sums over tensors, and what one tensor adds to it follows from what
it adds to these.

A fit to noise is biased too, more so the fewer weights it sees: in runs stored in 16 bits, by as much as
samples spread. The same groups tell it (Quenouille's estimate), and a standard error here is
√(variance + bias²): how far a figure may be off from that of all weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods.rehearsal import rounding_share
from hubextrap.statistics.origins import predicted
from hubextrap.statistics.past import pasts
from hubextrap.statistics.table import GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hubextrap.methods import Rehearsals
    from hubextrap.methods.rules import FirstMatch
    from hubextrap.statistics.measures import Spectra
    from hubextrap.statistics.origins import Pair
    from hubextrap.statistics.past import Past
    from hubextrap.statistics.table import GramTable

REPLICAS, MOMENTS = GROUPS + 1, 3
STDERR_TENSORS = 64
"""From how many tensors at most a variance is computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """How a weighted mean of R relative errors changes with the squares that they are the roots of."""

    known: NDArray[np.intp]
    """Those of the R that enter the mean."""
    of_errors: NDArray[np.float64]
    of_motions: NDArray[np.float64]

    @classmethod
    def on(
        cls, errors: NDArray[np.float64], motions: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> Influence:
        """Of √(E/M): ½·√(E/M)·(dE/E − dM/M). Args: errors, motions: (R,) squares, over all tensors."""
        known = np.flatnonzero(~np.isnan(errors) & (motions > 0))
        above, below, shares = errors[known], motions[known], weights[known]
        shares = shares / shares.sum()
        both = np.sqrt(above * below)
        of_errors = np.divide(0.5 * shares, both, out=np.zeros_like(both), where=both > 0)
        return cls(known, of_errors, of_errors * above / below)

    def of(self, errors: NDArray[np.float64], motions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,): what each tensor adds to the mean. Args: (R, N)."""
        if len(self.known) < len(errors):
            errors, motions = errors[self.known], motions[self.known]
        return np.asarray(self.of_errors @ errors - self.of_motions @ motions)


@dataclass(frozen=True, slots=True)
class Influences:
    """Those on what is said of one prediction, its error and the one that was to be expected: of all that
    checkpoints hold and, where rounding matters, of the signal."""

    found: tuple[Influence, ...]
    expected: tuple[Influence, ...]


def telling_parts(table: GramTable, at_once: int) -> Iterator[tuple[GramTable, NDArray[np.float64]]]:
    """The tensors of a sampled table that stand for all in a variance, so many at once, each part with (N,)
    what their squared deviations are multiplied by.

    A tensor adds to a variance about the square of how far it moved. Where there are more than
    `STDERR_TENSORS`, that is the chance with which each is taken, and its weight is the inverse: those that
    moved most are all taken, and of the others some at equal distances. So many are enough, as a variance
    need not be known to the last digit.
    """
    factors = table.sampling_factors
    sizes = factors * np.trace(table.gram, axis1=1, axis2=2) ** 2
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    weights = np.zeros(len(sizes))
    sure, rest = 0, float(sizes.sum())
    while sure < len(order) and (STDERR_TENSORS - sure) * sizes[order[sure]] >= rest * (1 - 1e-9):
        rest -= sizes[order[sure]]
        sure += 1
    if len(order) <= STDERR_TENSORS:
        sure = len(order)
    weights[order[:sure]] = 1.0
    others, count = np.sort(order[sure:]), STDERR_TENSORS - sure
    if len(others):
        ends = np.cumsum(sizes[others])
        taken = others[np.searchsorted(ends, (np.arange(count) + 0.5) * (ends[-1] / count))]
        weights[taken] = ends[-1] / (count * sizes[taken])
    rows = np.flatnonzero(weights)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        yield table.of(some), weights[some] * factors[some]


def stderrs(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """(…): √(variance + bias²), of (…, `MOMENTS`).

    The squared bias is without what tensors whose biases were chance would give: the sum of their squares.
    """
    variances, biases, by_chance = np.moveaxis(moments, -1, 0)
    return np.asarray(np.sqrt(variances + np.maximum(biases**2 - by_chance, 0.0)))


def bytes_of_sampled(of_one: int, count: int) -> int:
    """What a tensor takes, where one that is not sampled takes ``of_one``, with ``count`` checkpoints."""
    return REPLICAS * (of_one + 8 * 8 * count**2)


def add_moments(
    moments: dict[Pair, NDArray[np.float64]],
    influences: dict[Pair, Influences],
    first: FirstMatch,
    part: tuple[GramTable, NDArray[np.float64]],
    spectra: Spectra,
) -> None:
    """Add what some tensors of a sampled table add to the errors of what is said of predictions.

    Args:
        moments: (2, 2, MOMENTS) of each pair: of what was found and of what was expected, each of all and of
            the signal. A pair that cannot be predicted without a group of weights goes.
        part: one of `telling_parts`.
    """
    table, factors = part
    replicas = _replicas(table)

    def add_expected(pair: Pair, parts: list[Past]) -> None:
        of_pair = influences[pair].expected
        if pair.rehearsals is not None and of_pair:
            gained = _of_expected(of_pair, parts, pair.last, pair.rehearsals, factors)
            moments[pair][1, : len(of_pair)] += gained

    rounded = any(len(found.found) > 1 for found in influences.values())
    for some in predicted(moments, first, replicas, add_expected, spectra, of_each=True):
        for of_rule, errors in some.errors():
            taken = _tensors(of_rule)
            for which, measure in enumerate(of_rule.measures(len(table.steps), rounded)):
                squares, motions = measure.squares(errors), measure.motions(some.origins, some.targets)
                for row, pair in enumerate(some.pairs):
                    moved = influences[pair].found[which].of(squares[[row]], motions[[row]])
                    moments[pair][0, which] += _moments(moved, factors[taken])


def expected_moments(
    asked: Sequence[tuple[Sequence[Influence], Rehearsals]],
    first: FirstMatch,
    part: tuple[GramTable, NDArray[np.float64]],
) -> list[NDArray[np.float64]]:
    """(number of influences, MOMENTS) each: what some tensors add to those of what is expected.

    Args:
        asked: of each target, the influences on what is expected of it, and its rehearsals.
        part: one of `telling_parts`.
    """
    (table, factors), last = part, len(part[0].steps) - 1
    parts = pasts(first, _replicas(table), of_each=True)
    return [_of_expected(influences, parts, last, rehearsals, factors) for influences, rehearsals in asked]


def rounding_share_stderr(table: GramTable) -> float:
    """Of the `rounding_share` of all tensors together, linearised: by what each group of each tensor adds to
    the smallest eigenvalue and to the mean motion."""
    total, count = table.total(), len(table.steps)
    share = float(rounding_share(total))
    if not share:
        return 0.0
    centre = np.eye(count) - 1.0 / count
    vector = centre @ np.linalg.eigh(centre @ total @ centre)[1][:, 1]
    steps = np.eye(count)[1:] - np.eye(count)[:-1]
    form = np.outer(vector, vector) / (vector @ total @ vector)
    form -= steps.T @ steps / np.einsum("sk,kl,sl->", steps, total, steps)
    moved = share * np.einsum("kl,nkl->n", form, _replicas(table).gram)
    return float(stderrs(_moments(moved, table.sampling_factors)))


def _replicas(table: GramTable) -> GramTable:
    """The table without each group in turn, then as it is, as one of `REPLICAS` times as many tensors."""
    grams = [*(table.left_out(group).gram for group in range(GROUPS)), table.gram]
    return replace(
        table,
        tensors=table.tensors * REPLICAS,
        elements=np.tile(table.elements, REPLICAS),
        gram=np.concatenate(grams),
        sample=None,
    )


def _of_expected(
    influences: Sequence[Influence],
    parts: Sequence[Past],
    last: int,
    rehearsals: Rehearsals,
    factors: NDArray[np.float64],
) -> NDArray[np.float64]:
    moments = np.zeros((len(influences), MOMENTS))
    for part in parts if influences else ():
        taken = _tensors(part)
        squares = part.rehearsed_squares(rehearsals, last, len(influences) > 1)
        for which, influence in enumerate(influences):
            moved = influence.of(squares[2 * which], squares[2 * which + 1])
            moments[which] += _moments(moved, factors[taken])
    return moments


def _tensors(past: Past) -> Sequence[int]:
    """The N tensors that stand behind those of `_replicas`."""
    return past.rows[: len(past.rows) // REPLICAS]


def _moments(moved: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(MOMENTS,): what some tensors add to a figure's variance, to its bias, and their squared biases.

    Args:
        moved: (REPLICAS·N,).
        factors: (N,).
    """
    *without, whole = moved.reshape(REPLICAS, -1)
    mean = np.mean(without, axis=0)
    biases = GROUPS * (mean - whole) * factors
    return np.array([((without - mean) ** 2).sum(axis=0) @ factors, biases.sum(), biases @ biases])
