"""What a trajectory's own past lets expect of a rule, from its errors at every earlier origin, see `past`.

Errors are relative: divided by the distance from the origin's checkpoint to the target's, which is the error
of `persistence`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.methods import on_grid, rehearse, rounding_share
from hubextrap.methods.rehearsal import ROUNDED
from hubextrap.methods.rules import FirstMatch
from hubextrap.statistics.jackknife import (
    MOMENTS,
    Influence,
    bytes_of_sampled,
    expected_moments,
    stderrs,
    telling_parts,
)
from hubextrap.statistics.past import pasts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from hubextrap.methods import Rehearsals, Rule
    from hubextrap.statistics.past import Past
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
    total_stderr: float | None = None
    """Standard errors of both, as far as only a sample of the weights was read; None where all were."""
    signal_stderr: float | None = None

    @property
    def relative_error(self) -> float | None:
        """The one to judge by: where rounding to 16 bits is much of the motion, the signal's."""
        return self.total if self.signal is None else self.signal

    @property
    def stderr(self) -> float | None:
        """Of the one to judge by."""
        return self.total_stderr if self.signal is None else self.signal_stderr


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
    return expectations_of_last(rules, table, [target], rounded)[0]


def expectations_of_last(
    rules: Sequence[Rule], table: GramTable, targets: Sequence[float], rounded: bool
) -> list[Expectation]:
    """The same of several times: what they have in common is worked out once."""
    first, last = FirstMatch(rules), len(table.steps) - 1
    asked = [rehearse(table.times, target) for target in targets]
    sums = [np.zeros((4, len(rehearsals))) for rehearsals in asked]
    for some in table.parts(tensors_at_once(table.times, targets)):
        parts = pasts(first, some)
        for one, rehearsals in zip(sums, asked, strict=True):
            one += rehearsed_squares(parts, last, rehearsals, rounded)
    found = [expectation(one, rehearsals, rounded) for one, rehearsals in zip(sums, asked, strict=True)]
    if table.sample is None:
        return found
    known = [
        (influences_on(one, rehearsals, rounded), rehearsals)
        for one, rehearsals in zip(sums, asked, strict=True)
    ]
    moments = [np.zeros((len(influences), MOMENTS)) for influences, _ in known]
    of_tensor = bytes_of_sampled(_bytes_of_tensor(table.times, targets), len(table.steps))
    for part in telling_parts(table, max(1, FIT_MEMORY // of_tensor)):
        for of_target, more in zip(moments, expected_moments(known, first, part), strict=True):
            of_target += more
    return [_with_stderrs(one, stderrs(of_target)) for one, of_target in zip(found, moments, strict=True)]


def _with_stderrs(found: Expectation, errors: NDArray[np.float64]) -> Expectation:
    """Args: errors: of all and, where rounding matters, of the signal; none where nothing is expected."""
    if not len(errors):
        return found
    total, *signal = (float(on_grid(stderr)) for stderr in errors)
    return replace(found, total_stderr=total, signal_stderr=signal[0] if signal else None)


def fit_memory(steps: Sequence[float], targets: Iterable[float], sampled: bool = False) -> int:
    """Bytes that fitting to a table of these steps takes beside the table."""
    of_tensor = _bytes_of_tensor(steps, targets)
    return max(FIT_MEMORY, bytes_of_sampled(of_tensor, len(steps)) if sampled else of_tensor)


def tensors_at_once(steps: Sequence[float], targets: Iterable[float]) -> int:
    """How many tensors to fit at the same time: `fit_memory` holds them."""
    return max(1, FIT_MEMORY // _bytes_of_tensor(steps, targets))


def _bytes_of_tensor(steps: Sequence[float], targets: Iterable[float]) -> int:
    rehearsals = max((len(rehearse(steps, target)) for target in targets), default=0)
    return 8 * FIT_COPIES * len(steps) * max(len(steps), rehearsals)


def rehearsed_squares(
    parts: Sequence[Past], last: int, rehearsals: Rehearsals, rounded: bool
) -> NDArray[np.float64]:
    """(4, R): squares of errors and of motions, of all and of the signal; the latter 0 unless ``rounded``.

    What `expectation` reads; that of some tensors and that of others add up.
    """
    sums = np.zeros((4, len(rehearsals)))
    for part in parts if len(rehearsals) else ():
        for row, found in zip(sums, part.rehearsed_squares(rehearsals, last, rounded), strict=False):
            row += found
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


def influences_on(sums: NDArray[np.float64], rehearsals: Rehearsals, rounded: bool) -> tuple[Influence, ...]:
    """Those on the `expectation` of all and, where ``rounded``, of the signal; none where it says nothing."""
    both = (sums[:2], sums[2:])[: 1 + rounded]
    found = [Influence.on(errors, motions, rehearsals.weights) for errors, motions in both]
    return tuple(found) if all(len(one.known) for one in found) else ()


def relative(squares: NDArray[np.float64], real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root of the quotient; NaN where nothing moved."""
    return np.sqrt(np.divide(squares, real, out=np.full_like(squares, np.nan), where=real > 0))
