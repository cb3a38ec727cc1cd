"""What evaluations say of predictions, in the form in which a verdict takes it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from hubextrap.evaluation.table import PREDICTION, EvaluationTable, Key, Row
from hubextrap.statistics import ScoreOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.statistics.findings import Outcome

_Z = 1.96
"""Of the standard normal distribution, for 95 %."""


def outcomes_of(tables: Iterable[EvaluationTable]) -> tuple[ScoreOutcome, ...]:
    """Every prediction beside the last observed checkpoint of its table, on the main figure of each task.

    The main figure is the first that says which direction is better; a table without such a checkpoint, or
    without a prediction, says nothing.
    """
    found = []
    for table in tables:
        if table.last is None:
            continue
        keys = table.main_keys().values()
        predictions = [row for row in table.rows if row.label.startswith(PREDICTION)]
        found += [outcome_of(table, row, key) for row in predictions for key in keys]
    return tuple(dict.fromkeys(found))


def failed(label: str, step: int | None, task: str, reason: str) -> ScoreOutcome:
    """What to say of an evaluation that ended in an error."""
    return ScoreOutcome(label, step, task, None, None, None, None, "failed", reason)


def outcome_of(table: EvaluationTable, row: Row, key: Key) -> ScoreOutcome:
    """One figure of one prediction beside that of the last observed checkpoint, which the table has."""
    assert table.last is not None
    ours, theirs = row.score(key), table.last.score(key)
    title = next(score.title for each in table.rows if (score := each.score(key)) is not None)
    if ours is None or not isfinite(ours.value):
        return failed(row.label, row.step, title, "the evaluation gave no figure")
    if theirs is None or not isfinite(theirs.value):
        return failed(row.label, row.step, title, "the last observed checkpoint has no figure")
    change = ours.value - theirs.value
    difference = table.difference(row, key)
    interval = None if difference is None else difference.interval
    if interval is None and ours.stderr is not None and theirs.stderr is not None:
        spread = _Z * (ours.stderr**2 + theirs.stderr**2) ** 0.5
        interval = (change - spread, change + spread)
    return ScoreOutcome(
        row.label,
        row.step,
        title,
        ours.value,
        theirs.value,
        change,
        interval,
        _judged(interval, bool(ours.higher_is_better)),
    )


def _judged(interval: tuple[float, float] | None, higher_is_better: bool) -> Outcome:
    if interval is None or not all(map(isfinite, interval)):
        return "not judged"
    low, high = interval
    if low <= 0 <= high:
        return "no difference"
    return "better" if (low > 0) == higher_is_better else "worse"
