"""Task scores against the step, collected from one or more evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.table import PREDICTION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hubextrap.evaluation.table import EvaluationTable, Score


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
    higher_is_better: bool | None
    points: tuple[Point, ...]
    """By step; those without one at the end. A checkpoint that several evaluations measured is there once."""

    @property
    def observed(self) -> list[Point]:
        return [point for point in self.points if not point.is_prediction and point.step is not None]

    @property
    def predicted(self) -> list[Point]:
        return [point for point in self.points if point.is_prediction and point.step is not None]


def collect_accuracy(tables: Mapping[Path, EvaluationTable]) -> list[Accuracy]:
    """One entry a (task, metric, filter), over all files.

    Raises:
        EvaluationError: two files measured a task in different ways.
    """
    _check_same_tasks(tables)
    found: dict[tuple[str, str, str], dict[tuple[int | None, str, bool], Point]] = {}
    scores: dict[tuple[str, str, str], Score] = {}
    for table in tables.values():
        for row in table.rows:
            for score in row.scores:
                scores.setdefault(score.key, score)
                point = Point(row.label, row.place, row.step, score.value, score.stderr)
                place = (row.step, row.place, point.is_prediction)
                found.setdefault(score.key, {}).setdefault(place, point)
    return [
        Accuracy(
            scores[key].title,
            scores[key].higher_is_better,
            tuple(
                sorted(
                    points.values(),
                    key=lambda point: (point.step is None, point.step or 0, point.is_prediction),
                )
            ),
        )
        for key, points in found.items()
    ]


def _check_same_tasks(tables: Mapping[Path, EvaluationTable]) -> None:
    first: dict[str, tuple[Path, EvaluationTable]] = {}
    for path, table in tables.items():
        for task, record in table.settings.tasks.items():
            earlier_path, earlier = first.setdefault(task, (path, table))
            if (
                record != earlier.settings.tasks[task]
                or table.settings.limit != earlier.settings.limit
                or table.settings.apply_chat_template != earlier.settings.apply_chat_template
            ):
                raise EvaluationError(
                    f"{path} and {earlier_path}: measured {task} in different ways (its prompt, examples, "
                    "number of documents or scoring), so their figures are not comparable; report them "
                    "apart"
                )
