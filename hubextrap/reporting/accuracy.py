"""Task scores against the step, collected from one or more evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.table import PREDICTION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hubextrap.evaluation.table import EvaluationTable, Key


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint's score."""

    label: str
    place: str
    step: int | None
    value: float
    stderr: float | None

    @property
    def is_prediction(self) -> bool:
        return self.label.startswith(PREDICTION)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One figure of one task over all checkpoints that were evaluated."""

    title: str
    points: tuple[Point, ...]
    """By step; those without one at the end. A checkpoint that several evaluations measured is there once."""

    @property
    def observed(self) -> list[Point]:
        return [point for point in self.points if not point.is_prediction and point.step is not None]

    @property
    def predicted(self) -> list[Point]:
        return [point for point in self.points if point.is_prediction and point.step is not None]


def collect_accuracy(tables: Mapping[Path, EvaluationTable]) -> list[Accuracy]:
    """One entry per (task, metric, filter), over all files.

    Raises:
        EvaluationError: two files measured a task in different ways.
    """
    _check_same_tasks(tables)
    found: dict[Key, dict[tuple[int | None, str, bool], Point]] = {}
    titles: dict[Key, str] = {}
    for table in tables.values():
        for row in table.rows:
            for score in row.scores:
                titles.setdefault(score.key, score.title)
                point = Point(row.label, row.place, row.step, score.value, score.stderr)
                place = (row.step, row.place, point.is_prediction)
                found.setdefault(score.key, {}).setdefault(place, point)

    def order(point: Point) -> tuple[bool, int, bool]:
        return (point.step is None, point.step or 0, point.is_prediction)

    return [Accuracy(titles[key], tuple(sorted(points.values(), key=order))) for key, points in found.items()]


def _check_same_tasks(tables: Mapping[Path, EvaluationTable]) -> None:
    first: dict[str, tuple[Path, object]] = {}
    for path, table in tables.items():
        for task, record in table.settings.tasks.items():
            way = (record, table.settings.limit, table.settings.apply_chat_template)
            earlier, known = first.setdefault(task, (path, way))
            if way != known:
                raise EvaluationError(
                    f"{path} and {earlier}: measured {task} in different ways (its prompt, examples, "
                    "number of documents or scoring), so their figures are not comparable; report them "
                    "apart"
                )
