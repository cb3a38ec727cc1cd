"""How predictions turned out: what was said of a run at each checkpoint, against what was found later.

A row of a backtest holds nothing from behind its origin, so it is what the prediction came to that was made,
or could have been made, when its origin was the newest checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hubextrap.figures import with_stderr
from hubextrap.notebooks import counted, one_line
from hubextrap.statistics.plain_names import plain_name
from hubextrap.statistics.verdict import mean_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hubextrap.statistics.backtesting import Backtest, BacktestRow

HEADINGS = (
    "predicted from",
    "by",
    "target",
    "expected error",
    "checked at",
    "expected there",
    "found",
    "better than doing nothing",
    "within what was expected",
)
EXPLAINED = (
    "For each new checkpoint: what was predicted from it, and the error that its past let expect. Once the "
    "target is there, or the next checkpoint before it, the prediction is held against the real weights. "
    "Errors are relative: 1 is what doing nothing gives, 0 would be perfect."
)
_ERRORS = 2.0
"""Standard errors by which a found error may lie above what was expected, and count as within it."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """What was said of a run when a checkpoint was its newest. Errors are relative: 1 is doing nothing."""

    last_step: int
    method: str
    """As a backtest calls it."""
    target_step: int | None
    """The step that was predicted, or would have been; None where the past supported none."""
    expected_error: float | None = None
    """Of that step."""
    expected_error_stderr: float | None = None
    """None where all weights were read, or no error could be expected."""


@dataclass(frozen=True, slots=True)
class HindsightRow:
    """One `Foresight`, and what was found: at its target, or at the next checkpoint until that is there."""

    said: Foresight
    found_step: int | None = None
    """Where it was held against the real weights; None: no later checkpoint is there yet."""
    expected_there: float | None = None
    """The error that the checkpoints up to ``last_step`` let expect of that step."""
    expected_there_stderr: float | None = None
    found_error: float | None = None
    """None where the method could not serve there, or nothing moved."""
    found_error_stderr: float | None = None
    replaced: tuple[int, ...] = ()
    """Steps whose checkpoints have been replaced since: what was made then was made from others."""

    @property
    def skill(self) -> float | None:
        """1 − error: above 0 is better than doing nothing."""
        return None if self.found_error is None else 1.0 - self.found_error

    @property
    def within(self) -> bool | None:
        """Whether the error is no larger than was expected, two standard errors of both allowed."""
        if self.found_error is None or self.expected_there is None:
            return None
        spread = math.hypot(self.found_error_stderr or 0.0, self.expected_there_stderr or 0.0)
        return self.found_error <= self.expected_there + _ERRORS * spread

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON values, flat."""
        found = {key: value for key, value in asdict(self).items() if key != "said"}
        return {
            **asdict(self.said),
            **found,
            "replaced": list(self.replaced),
            "skill": self.skill,
            "within": self.within,
        }


@dataclass(frozen=True, slots=True)
class Hindsight:
    """The rows in step order."""

    rows: tuple[HindsightRow, ...]

    def __repr__(self) -> str:
        return one_line(self, counted(len(self.rows), "prediction"), self.line)

    @property
    def judged(self) -> tuple[HindsightRow, ...]:
        """Those that can be held against real weights."""
        return tuple(row for row in self.rows if row.found_error is not None)

    @property
    def line(self) -> str:
        """What they come to, in a sentence."""
        judged = self.judged
        if not judged:
            return "Nothing has been found out yet: no checkpoint has come after a prediction"
        errors = [row.found_error for row in judged if row.found_error is not None]
        better = sum(error < 1 for error in errors)
        said = (
            f"Of {counted(len(judged), 'prediction')} that can be checked by now, {better} came nearer to "
            f"the real weights than the last checkpoint was; their mean error is {mean_of(errors):.2f}"
        )
        both = [(row.expected_there, row.within) for row in judged if row.expected_there is not None]
        if not both:
            return said
        expected, within = mean_of([error for error, _ in both]), sum(bool(one) for _, one in both)
        whose = "" if len(both) == len(judged) else f" for {len(both)} of them"
        return f"{said}. On average, {expected:.2f} was expected{whose}; {within} came out no worse"

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {"line": self.line, "rows": [row.as_dict() for row in self.rows]}


def in_hindsight(
    said: Sequence[Foresight],
    backtest: Backtest,
    replaced: Mapping[int, Collection[int]] | None = None,
) -> Hindsight:
    """What became of each prediction, as far as checkpoints are there that say it.

    Args:
        backtest: of the run as it is now, all methods named in ``said`` among its candidates.
        replaced: by ``last_step``, the steps whose checkpoints are others now.
    """
    by_pair = {(row.method, row.last_step, row.target_step): row for row in backtest.rows}
    rows = []
    for one in sorted(said, key=lambda each: each.last_step):
        later = [step for step in backtest.steps if step > one.last_step]
        there = one.target_step if one.target_step in later else next(iter(later), None)
        marks = tuple(sorted((replaced or {}).get(one.last_step, ())))
        found = None if there is None else by_pair.get((one.method, one.last_step, there))
        rows.append(_row(one, there, found, marks))
    return Hindsight(tuple(rows))


def _row(
    said: Foresight, there: int | None, found: BacktestRow | None, replaced: tuple[int, ...]
) -> HindsightRow:
    if found is None:
        return HindsightRow(said, there, replaced=replaced)
    return HindsightRow(
        said,
        there,
        found.expected_error,
        found.expected_error_stderr,
        found.error,
        found.error_stderr,
        replaced,
    )


def hindsight_cells(row: HindsightRow) -> tuple[str, ...]:
    """One row as text, a cell for each of `HEADINGS`."""
    said = row.said
    return (
        f"step {said.last_step}" + " *" * bool(row.replaced),
        plain_name(said.method),
        "–" if said.target_step is None else f"step {said.target_step}",
        _figure(said.expected_error, said.expected_error_stderr),
        "–" if row.found_step is None else f"step {row.found_step}",
        _figure(row.expected_there, row.expected_there_stderr),
        _figure(row.found_error, row.found_error_stderr),
        _yes(None if row.skill is None else row.skill > 0),
        _yes(row.within),
    )


def hindsight_notes(hindsight: Hindsight) -> list[str]:
    """What the marked rows mean: a sentence for all that are marked alike."""
    marked: dict[tuple[int, ...], list[int]] = {}
    for row in hindsight.rows:
        if row.replaced:
            marked.setdefault(row.replaced, []).append(row.said.last_step)
    return [
        f"* The weights of {_steps(replaced)} have been replaced since the prediction from {_steps(origins)}."
        for replaced, origins in marked.items()
    ]


def _steps(steps: Sequence[int]) -> str:
    return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"


def _figure(error: float | None, stderr: float | None) -> str:
    return with_stderr(error, stderr, 2 if stderr is None else 3)


def _yes(holds: bool | None) -> str:
    return "–" if holds is None else "yes" if holds else "no"
