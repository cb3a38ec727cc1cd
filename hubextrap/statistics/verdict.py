"""What a backtest comes to: which method for which horizon, from which base, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import in_words

if TYPE_CHECKING:
    from hubextrap.statistics.backtesting import Backtest, BacktestRow

HORIZONS = (0.25, 0.5, 1.0)
"""Upper ends of the classes of horizons, (target − last)/(last − first); then farther."""
TRUSTED = 0.6
"""Mean error up to which a method is called of use. Task accuracy rose above that of the last checkpoint at
errors of .55 and below, and fell under it at .68."""


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


@dataclass(frozen=True, slots=True)
class BacktestVerdict:
    """What to use, and how far."""

    method: str | None
    """The best over the pairs up to a horizon of 1; None when no method was of any use."""
    base_step: int | None
    """The base that serves the next prediction best where a line through two checkpoints is to be drawn."""
    reach: float | None
    """The horizon up to which the method stayed of use; None when it did at none."""
    reach_step: float | None
    """The step that lies so far behind the last one observed; None where the clock never gets there."""
    reach_in_words: str | None
    """That step, or how many full-rate steps it is away."""
    failures: int
    """Of ``trials``, the predictions within reach that were worse than the last checkpoint."""
    trials: int


def pair_counts(backtest: Backtest) -> tuple[int, ...]:
    """How many shared pairs lie in each class of `HORIZONS`, and beyond."""
    rows = next(iter(backtest.shared_rows().values()), [])
    return tuple(len(found) for found in _by_horizon(rows))


def horizon_means(backtest: Backtest) -> tuple[HorizonMeans, ...]:
    """Every method, the best first."""
    shared = backtest.shared_rows()
    result = [
        HorizonMeans(
            method,
            tuple(_mean([row.error for row in found]) for found in _by_horizon(rows)),
            max((row.error for row in rows), default=None),
            _mean([row.expected_error for row in rows if row.expected_error is not None]),
            _mean([row.relative_error for row in rows]),
        )
        for method, rows in shared.items()
    ]
    return tuple(sorted(result, key=lambda entry: (_mean_near(shared[entry.method]), entry.method)))


def judge(backtest: Backtest) -> BacktestVerdict:
    """Which method to use for the next prediction of this run."""
    ranked = horizon_means(backtest)
    of_best = backtest.shared_rows()[ranked[0].method] if ranked else []
    if _mean_near(of_best) >= 1.0:
        return BacktestVerdict(None, backtest.base_step, None, None, None, 0, 0)
    reach, within = None, []
    # a horizon of 1 is as far as trust goes
    for end, rows in zip(HORIZONS, _by_horizon(of_best), strict=False):
        mean = _mean([row.error for row in rows])
        if mean is None:
            continue
        if mean > TRUSTED:
            break
        within += rows
        reach = end
    return BacktestVerdict(
        ranked[0].method,
        backtest.base_step,
        reach,
        None if reach is None else backtest.clock.step_at(time_at(backtest, reach)),
        None if reach is None else step_in_words(backtest, reach),
        sum(row.error > 1 for row in within),
        len(within),
    )


def time_at(backtest: Backtest, horizon: float) -> float:
    """The time that lies a horizon behind the last checkpoint."""
    times = backtest.clock.times(backtest.steps)
    return times[-1] + horizon * (times[-1] - times[0])


def step_in_words(backtest: Backtest, horizon: float) -> str:
    """``step 425``; or how many full-rate steps away it is, where the clock never gets there."""
    time = time_at(backtest, horizon)
    if (step := backtest.clock.step_at(time)) is not None:
        return f"step {step:,.0f}"
    return in_words(backtest.clock.times(backtest.steps), time)


def horizon_classes(backtest: Backtest) -> tuple[str, ...]:
    """What tables call the classes of `HORIZONS`: by their ends, and the steps that these are."""
    return (*(f"to {end:g} ({step_in_words(backtest, end)})" for end in HORIZONS), "farther")


def _by_horizon(rows: list[BacktestRow]) -> list[list[BacktestRow]]:
    ends = (-1.0, *HORIZONS, np.inf)
    return [[row for row in rows if low < row.horizon <= high] for low, high in pairwise(ends)]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mean_near(rows: list[BacktestRow]) -> float:
    mean = _mean([row.error for row in rows if row.horizon <= HORIZONS[-1]])
    return np.inf if mean is None else mean
