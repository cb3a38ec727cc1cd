"""What a backtest comes to: which method for which horizon, from which base, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Trust:
    """Up to where the past of a run trusts the rules of a recipe."""

    horizon: float
    """0 where it trusts them nowhere."""
    step: int | None
    """The step that lies there; None where the clock never gets there."""
    said: str
    """``step 425``, or as `step_in_words` has it."""


def trust(backtest: Backtest) -> Trust | None:
    """By the verdict on the backtest of one recipe; None where nothing could be predicted."""
    if _mean_near(list(backtest.rows)) == np.inf:
        return None
    verdict = judge(backtest)
    if verdict.reach is None:
        return Trust(0.0, backtest.steps[-1], f"step {backtest.steps[-1]}")
    step = None if verdict.reach_step is None else round(verdict.reach_step)
    return Trust(verdict.reach, step, step_in_words(backtest, verdict.reach))


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


def _by_horizon(rows: list[BacktestRow]) -> list[list[BacktestRow]]:
    ends = (-1.0, *HORIZONS, np.inf)
    return [[row for row in rows if low < row.horizon <= high] for low, high in pairwise(ends)]


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mean_near(rows: list[BacktestRow]) -> float:
    mean = _mean([row.error for row in rows if row.horizon <= HORIZONS[-1]])
    return np.inf if mean is None else mean
