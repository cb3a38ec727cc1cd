"""Is more training worth it? The slope of a score at the end of a run, with an interval.

A line is fitted to the last half of the checkpoints. Its slope is a weighted sum of their scores, so over
problems it is the mean of each problem's own slope, and a bootstrap over the problems gives its interval: all
checkpoints answered the same ones. Where there is nothing per problem, the standard errors weigh.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.evaluation.paired import LEVEL, paired_interval, student_t

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.evaluation.logged import LoggedColumn
    from hubextrap.evaluation.table import EvaluationTable, Key, Row, Score

LEAST = 3
"""Checkpoints under a line that says anything."""
PER = 100
"""Steps that a slope is per."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True, slots=True)
class Slope:
    """How fast a score changes at the end of a run."""

    title: str
    """Of the score, e.g. ``radd exact_match``."""
    per_100_steps: float
    interval: tuple[float, float] | None
    """95 %; None where nothing says how far the figures can be trusted."""
    first_step: int
    last_step: int
    count: int
    """Checkpoints, or logged values, that the line was fitted to."""
    problems: int | None
    """None where the figure is no mean over problems, or was logged by the trainer."""
    higher_is_better: bool | None
    logged: bool = False
    """Whether the trainer logged it."""
    value: float = 0.0
    """The score at which the line ends, at ``last_step``."""

    @property
    def direction(self) -> str:
        """``rises``, ``falls``, or ``unclear``: the interval holds 0, or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "unclear"
        return "rises" if self.interval[0] > 0 else "falls"

    @property
    def improves(self) -> bool:
        """Whether it is seen that the score still gets better."""
        return self.direction == ("falls" if self.higher_is_better is False else "rises")

    @property
    def sentence(self) -> str:
        """In one line: the direction, the figure with its interval, and what it rests on."""
        wished = "fall" if self.higher_is_better is False else "rise"
        said = {"rises": "rises", "falls": "falls", "unclear": f"no {wished} seen"}[self.direction]
        if self.direction != "unclear" and self.improves:
            said = f"still {said}"
        if self.higher_is_better is False:
            said += " (lower is better)"
        digits = _digits(self.per_100_steps, *(self.interval or ()))
        figure = f"{self.per_100_steps:+.{digits}f}"
        if self.interval is None:
            said, figure = "no interval", f"{figure} (nothing says how far to trust it)"
        else:
            figure += f" [{', '.join(f'{bound:+.{digits}f}' for bound in self.interval)}]"
        colon = ":" if self.direction == "unclear" else ""
        basis = f"{self.count} logged values" if self.logged else f"{self.count} checkpoints"
        if self.problems is not None:
            basis += f", {self.problems} problems"
        over = f"per {PER} steps over steps {self.first_step}–{self.last_step}"
        return f"{self.title}{colon} {said}: {figure} {over} ({basis})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"direction": self.direction, "sentence": self.sentence}


def table_slopes(table: EvaluationTable, labels: Sequence[str]) -> tuple[Slope, ...]:
    """The slope of each task's first figure that says which direction is better, over these rows.

    Args:
        labels: rows of the run's own checkpoints, in step order.
    """
    rows = [row for label in labels for row in table.rows if row.label == label and row.step is not None]
    return tuple(slope for key in table.main_keys(rows).values() if (slope := _slope(rows, key)) is not None)


def logged_slope(column: LoggedColumn) -> Slope | None:
    """That of what a trainer logged, by the scatter of the values around the line; None for fewer than 4."""
    count = max(LEAST + 1, math.ceil(len(column.steps) / 2))
    if len(column.steps) < count:
        return None
    steps, values = np.array(column.steps[-count:], float), np.array(column.values[-count:])
    shares = _shares(steps)
    rise = values - values[0]  # exactly 0 where nothing changed
    slope = float(shares @ rise)
    line = values.mean() + slope * (steps - steps.mean())
    away = rise - rise.mean() - slope * (steps - steps.mean())
    scatter = float(np.sum(away**2)) / (count - 2)
    wide = student_t((1 + LEVEL) / 2, count - 2) * math.sqrt(scatter * float(np.sum(shares**2)))
    bounds = (PER * (slope - wide), PER * (slope + wide))
    return Slope(
        f"the trainer's {column.name}", PER * slope, bounds, int(steps[0]), int(steps[-1]), count, None,
        column.higher_is_better, logged=True, value=float(line[-1]),
    )  # fmt: skip


def score_interval(score: Score) -> tuple[float, float] | None:
    """95 % of a score by itself: Wilson's where problems are right or wrong, else by the standard error."""
    problems, p = score.problems, score.value
    if problems and all(value in (0, 1) for value in problems):
        n, z2 = len(problems), _Z**2
        middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n)))
    if score.stderr is None or not math.isfinite(p + score.stderr):
        return None
    return (p - _Z * score.stderr, p + _Z * score.stderr)


def _slope(rows: Sequence[Row], key: Key) -> Slope | None:
    """None where fewer than 3 checkpoints have a finite figure."""
    known = [(row.step, score) for row in rows if (score := row.score(key)) is not None]
    known = [(step, score) for step, score in known if math.isfinite(score.value)]
    count = max(LEAST, math.ceil(len(known) / 2))
    if len(known) < count:
        return None
    used = known[-count:]
    steps, scores = np.array([step for step, _ in used], float), [score for _, score in used]
    slope, value, interval, problems = _fitted(steps, scores)
    bounds = None if interval is None else (PER * interval[0], PER * interval[1])
    title, better = scores[-1].title, scores[-1].higher_is_better
    first, last = int(steps[0]), int(steps[-1])
    return Slope(title, PER * slope, bounds, first, last, count, problems, better, value=value)


def _fitted(
    steps: NDArray[np.float64], scores: Sequence[Score]
) -> tuple[float, float, tuple[float, float] | None, int | None]:
    """Slope per step, the line's end, the slope's interval, and how many problems that rests on."""
    values = np.array([score.value for score in scores])
    each = [score.problems for score in scores]
    if all(each) and len({len(problems) for problems in each if problems}) == 1:
        answers = np.array(each)
        own = _shares(steps) @ (answers - answers[0])  # each problem's slope: 0 where nothing changed
        slope, bounds = float(own.mean()), paired_interval(tuple(own.tolist()), (0.0,) * len(own))
        end = float(values.mean() + slope * (steps[-1] - steps.mean()))
        return slope, end, bounds, len(own)
    errors = np.array([score.stderr if score.stderr is not None else math.nan for score in scores])
    trusted = bool(np.all(np.isfinite(errors) & (errors > 0)))
    weights = errors**-2 if trusted else np.ones(len(values))
    middle, mean = np.average(steps, weights=weights), np.average(values, weights=weights)
    spread = float(np.sum(weights * (steps - middle) ** 2))
    slope = float(np.sum(weights * (steps - middle) * (values - values[0]))) / spread
    wide = _Z / math.sqrt(spread)
    interval = (slope - wide, slope + wide) if trusted else None
    return slope, float(mean + slope * (steps[-1] - middle)), interval, None


def _digits(*figures: float) -> int:
    """Decimals that show two digits of the largest, and three at least."""
    largest = max(map(abs, figures))
    return 3 if not 0 < largest < math.inf else min(12, max(3, 1 - math.floor(math.log10(largest))))


def _shares(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each step's figure counts in the slope of the least-squares line."""
    away = steps - steps.mean()
    shares: NDArray[np.float64] = away / np.sum(away**2)
    return shares
