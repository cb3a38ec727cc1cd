"""What a backtest comes to, method by method and horizon by horizon; `judgement` draws the conclusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hubextrap import clocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.statistics.backtesting import Backtest, BacktestRow

HORIZONS = (0.25, 0.5, 1.0)
"""Upper ends of the classes of horizons, (target − last)/(last − first); then farther."""
PROMISING, TRUSTED, LOST = 0.5, 0.6, 0.8
"""Relative errors that part what predictions came to at the task: 216 of them, on five runs. Below the first,
none of 55 was worse than the last checkpoint; up to the second, a mean error calls a method of use; from the
third on, all were worse."""
_WORSE = ((PROMISING, TRUSTED, "13%"), (TRUSTED, LOST, "61%"))
"""How many were worse, of those with an error from and to these."""


@dataclass(frozen=True, slots=True)
class HorizonMeans:
    """One method over the pairs that every method could predict."""

    method: str
    means: tuple[float | None, ...]
    """Mean error in each class of `HORIZONS`, and beyond; None where there is no pair."""
    worst: float | None
    expected: float | None
    """Mean of what was expected, over the pairs for which something was."""
    total: float | None
    """Mean error with the rounding in it; the same as the mean of all where rounding does not matter."""
    stderrs: tuple[float | None, ...] = (None,) * (len(HORIZONS) + 1)
    """Standard errors of ``means``, as far as only a sample of the weights was read; None where all were. Of
    means at most so much: all rows come from the same weights, so it is the mean of their standard errors."""
    worst_stderr: float | None = None
    expected_stderr: float | None = None
    total_stderr: float | None = None


def at_the_task(error: float) -> str:
    """What a relative error from `PROMISING` on has meant for abilities; "" below."""
    if error < PROMISING:
        return ""
    if error >= 1:
        return "at 1 and above, the last checkpoint as it is comes no less near"
    which = f"all with an error above {LOST:g}"
    for begin, end, share in _WORSE:
        if begin <= error < end:
            which = f"{share} of those with an error from {begin:g} to {end:g}"
    return (
        f"below 1 is not yet better at the task: of predictions on five runs, {which} were worse than the "
        f"last checkpoint, and 0 of 55 below {PROMISING:g}"
    )


def pair_counts(backtest: Backtest) -> tuple[int, ...]:
    """How many shared pairs lie in each class of `HORIZONS`, and beyond."""
    rows = next(iter(backtest.shared_rows().values()), [])
    return tuple(len(found) for found in by_horizon(rows))


def horizon_means(backtest: Backtest) -> tuple[HorizonMeans, ...]:
    """Every method, the best first."""
    shared = backtest.shared_rows()
    result = [_horizon_means(method, rows) for method, rows in shared.items()]
    return tuple(sorted(result, key=lambda entry: (mean_near(shared[entry.method]), entry.method)))


def _horizon_means(method: str, rows: list[BacktestRow]) -> HorizonMeans:
    worst = max(rows, key=lambda row: row.error, default=None)
    expecting = [row for row in rows if row.expected_error is not None]
    classes = by_horizon(rows)
    return HorizonMeans(
        method,
        tuple(mean_of([row.error for row in found]) for found in classes),
        None if worst is None else worst.error,
        mean_of([row.expected_error for row in expecting if row.expected_error is not None]),
        mean_of([row.relative_error for row in rows]),
        tuple(mean_stderr([row.error_stderr for row in found]) for found in classes),
        None if worst is None else worst.error_stderr,
        mean_stderr([row.expected_error_stderr for row in expecting]),
        mean_stderr([row.relative_error_stderr for row in rows]),
    )


def time_at(backtest: Backtest, horizon: float) -> float:
    """The time that lies a horizon behind the last checkpoint."""
    times = backtest.clock.times(backtest.steps)
    return times[-1] + horizon * (times[-1] - times[0])


def step_in_words(backtest: Backtest, horizon: float) -> str:
    """The step that lies a horizon behind the last one, as `clocks.step_in_words` has it."""
    return clocks.step_in_words(backtest.clock, backtest.steps, time_at(backtest, horizon))


def horizon_classes(backtest: Backtest) -> tuple[str, ...]:
    """What tables call the classes of `HORIZONS`: by their ends, and the steps that these are."""
    return (*(f"to {end:g} ({step_in_words(backtest, end)})" for end in HORIZONS), "farther")


def say_unforeseen(steps: Sequence[int]) -> list[str]:
    """What to say of `Backtest.unforeseen`."""
    if not steps:
        return []
    named = ", ".join(map(str, steps[:20])) + (", …" if len(steps) > 20 else "")
    left_out = "some targets are left out: the learning rate known there did not say when they would be"
    return [f"from step {named} {left_out}; state the schedule in a recipe (trajectory.clock)"]


def by_horizon(rows: list[BacktestRow]) -> list[list[BacktestRow]]:
    ends = (-1.0, *HORIZONS, np.inf)
    return [[row for row in rows if low < row.horizon <= high] for low, high in pairwise(ends)]


def mean_of(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def mean_stderr(stderrs: Sequence[float | None]) -> float | None:
    """At most so much is that of the mean of figures that come from the same weights."""
    known = [stderr for stderr in stderrs if stderr is not None]
    return mean_of(known) if len(known) == len(stderrs) else None


def moved_by(backtest: Backtest, stderrs: int) -> Backtest:
    """The same with every error so many of its standard errors higher, but not below 0."""
    return replace(backtest, rows=tuple(_moved_by(row, stderrs) for row in backtest.rows))


def _moved_by(row: BacktestRow, stderrs: int) -> BacktestRow:
    names = ("relative_error", "expected_relative_error", "signal_error", "expected_signal_error")
    both = [(name, getattr(row, name), getattr(row, f"{name}_stderr")) for name in names]
    known = {name: max(value + stderrs * of, 0.0) for name, value, of in both if None not in (value, of)}
    return replace(row, **known)


def mean_near(rows: list[BacktestRow]) -> float:
    mean = mean_of([row.error for row in rows if row.horizon <= HORIZONS[-1]])
    return np.inf if mean is None else mean
