"""Scores over the steps of a run in one table, what its trainer logged beside them, and whether they rise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubextrap.evaluation.render import format_figure, markdown_table, rich_table, shown_figure, verdicts
from hubextrap.evaluation.slopes import Slope, score_interval
from hubextrap.evaluation.table import PREDICTION
from hubextrap.foreign_text import markdown_code, markdown_text, terminal_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hubextrap.evaluation.logged import LoggedColumn
    from hubextrap.evaluation.table import EvaluationTable, Row, Score

_ABREAST = 4
"""Columns of figures side by side, so that 80 columns of a terminal hold them."""
SHOWN = 12
"""Columns of a trainer's that are shown, and have a slope; all are in the JSON."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """What `evaluate_steps` found."""

    run: str
    """As it was named."""
    steps: tuple[int, ...]
    """Of its checkpoints."""
    table: EvaluationTable | None
    """Figures of every checkpoint, and of the predictions beside them; None where no tasks were named."""
    logged: tuple[LoggedColumn, ...]
    """What the trainer logged: rewards and evaluations."""
    slopes: tuple[Slope, ...]
    """How fast scores change at the end of the run."""
    notes: tuple[str, ...] = ()
    """What a reader has to know beside that."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Whether more training is worth it, a line per score; what the predictions scored; notes."""
        said = [slope.sentence for slope in self.slopes]
        if self.table is not None:
            said += [*verdicts(self.table), *self.table.notes]
        if (more := len(self.logged) - SHOWN) > 0:
            said.append(f"The trainer logged {more} more columns of its evaluations; --json has them.")
        return (*said, *self.notes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "steps": list(self.steps),
            "table": None if self.table is None else self.table.model_dump(mode="json"),
            "logged": [column.as_dict() for column in self.logged],
            "slopes": [slope.as_dict() for slope in self.slopes],
            "notes": list(self.notes),
        }


def steps_rich(scores: StepScores) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    columns = _columns(scores)
    named = 1 if scores.table is None else 2
    for start in range(named, len(columns), _ABREAST):
        header, *rows = zip(*columns[:named], *columns[start : start + _ABREAST], strict=True)
        parts.append(rich_table(header, rows, "r" * len(header)))
    return Group(*parts, *(Text(terminal_line(line)) for line in scores.sentences))


def steps_markdown(scores: StepScores) -> str:
    """The same as Markdown, under a heading."""
    header, *rows = ([markdown_text(cell) for cell in line] for line in zip(*_columns(scores), strict=True))
    heading = f"### Scores of {markdown_code(scores.run)} over its steps"
    table = markdown_table(header, rows, "r" * len(header))
    return "\n\n".join([heading, table, *map(markdown_text, scores.sentences)])


def _columns(scores: StepScores) -> list[list[str]]:
    """Columns with their heading on top, the steps first; predictions stand below the run."""
    rows = scores.table.rows if scores.table is not None else ()
    steps = [row.step for row in rows] if rows else list(scores.steps)
    columns = [["step", *("" if step is None else str(step) for step in steps)]]
    if scores.table is not None:
        columns.append(["checkpoint", *(_called(row) for row in rows)])
        for key in scores.table.keys:
            found = [row.score(key) for row in rows]
            known = next(score for score in found if score is not None)
            lower = " (lower is better)" * (known.higher_is_better is False)
            columns.append([known.title + lower, *map(shown_figure, found)])
            if any(score is not None and score_interval(score) is not None for score in found):
                columns.append(["95 % interval", *map(_interval, found)])
    before = {step: earlier for earlier, step in zip((-1, *scores.steps), scores.steps, strict=False)}
    observed = [not row.label.startswith(PREDICTION) for row in rows] or [True] * len(steps)
    for column in scores.logged[:SHOWN]:
        values = [
            None if step not in before or not own else column.between(before[step], step)
            for step, own in zip(steps, observed, strict=True)
        ]
        columns.append([column.name, *("" if value is None else format_figure(value) for value in values)])
    return columns


def _called(row: Row) -> str:
    """``last``, ``target``, ``prediction``; a checkpoint that is nothing but a step has no other name."""
    return "" if row.label == f"step {row.step}" else row.label


def _interval(score: Score | None) -> str:
    bounds = None if score is None else score_interval(score)
    return "" if bounds is None else f"[{', '.join(map(format_figure, bounds))}]"
