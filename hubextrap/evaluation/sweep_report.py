"""What a sweep found: the prediction chosen on one half of the problems, and how it does on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from hubextrap.evaluation.halves import main_figures, merit, on_half
from hubextrap.evaluation.own_answers import FALL
from hubextrap.evaluation.render import (
    format_figure,
    markdown_table,
    rich_table,
    shown_figure,
    to_markdown,
    to_rich,
)
from hubextrap.evaluation.table import LAST, PREDICTION, EvaluationTable, Key, Part
from hubextrap.figures import ONE, with_stderr
from hubextrap.foreign_text import markdown_text, terminal_line
from hubextrap.notebooks import counted, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType


class GridPoint(Part):
    """A prediction of the grid, in the order in which it was asked for."""

    label: str
    step: int
    damping: float | Literal["auto"]
    """``auto``: each tensor has its own, as the recipe says."""
    horizon: float | None = None
    """(target − last)/(last − first) on the clock."""
    expected_relative_error: float | None = None
    """By the run's own past; None where the weights were not compared, or it cannot say."""
    expected_relative_error_stderr: float | None = None
    """Where that comes from a sample of the weights; JSON has the key there alone."""
    trusted_up_to: str | None = None
    """The step up to which the past trusts the method; None where nothing says it."""
    own_answers: float | None = None
    """The mean change, in nats per answer, of the log-probability of the last checkpoint's own greedy answers
    to the same problems; None where no task is answered by text."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = write(self)
        if self.expected_relative_error_stderr is None:
            said.pop("expected_relative_error_stderr", None)
        return said

    @property
    def own_answers_fell(self) -> bool:
        """Whether they fell so far that all predictions seen so were worse at the task."""
        return self.own_answers is not None and self.own_answers <= -FALL

    @property
    def strength(self) -> float:
        """The damping as a number to order by."""
        return 1.0 if self.damping == "auto" else self.damping


class SweepResult(Part):
    """All figures of a sweep, and what follows from them."""

    format: int = 1
    figures: tuple[Key, ...]
    """(task, metric, filter) of those that decided."""
    candidates: tuple[GridPoint, ...]
    chosen: str
    """Label of the prediction that does best on the half that decides; the nearest one if several do."""
    is_better: bool
    """Whether it does better there than the last observed checkpoint."""
    all_problems: EvaluationTable
    deciding: EvaluationTable
    """On the half that decides."""
    reporting: EvaluationTable
    """On the other half: the chosen prediction, labelled so, and what it is compared with."""
    clock: str = "steps"
    """What horizons were counted by."""

    def __repr__(self) -> str:
        better = "better" if self.is_better else "no better"
        return one_line(
            self,
            counted(len(self.candidates), "prediction"),
            f"chosen: {self.chosen}, {better} than the last checkpoint",
        )

    __str__ = __repr__


def report_sweep(
    table: EvaluationTable, candidates: Sequence[GridPoint], *, clock: str = "steps"
) -> SweepResult:
    """Choose and report.

    Args:
        table: a row for each candidate by its label, the last observed checkpoint, and any other.

    Raises:
        EvaluationError: no task has a figure to choose by.
    """
    keys = main_figures(table.rows[0], table.settings.tasks)
    deciding = on_half(table, keys, reporting=False)
    reporting = on_half(table, keys, reporting=True)
    assert deciding.last is not None
    merits = {row.label: merit(row, keys) for row in deciding.rows}
    best = max(candidates, key=lambda each: (merits[each.label], -each.step, -each.strength))
    grid = {candidate.label for candidate in candidates}
    ours = next(row for row in reporting.rows if row.label == best.label)
    rows = [ours.model_copy(update={"label": PREDICTION})]
    rows += [row for row in reporting.rows if row.label not in grid]
    return SweepResult(
        figures=keys,
        candidates=tuple(candidates),
        chosen=best.label,
        is_better=merits[best.label] > merits[LAST],
        all_problems=table,
        deciding=deciding,
        reporting=reporting.model_copy(update={"rows": tuple(rows)}),
        clock=clock,
    )


def sentence(result: SweepResult) -> str:
    """What was chosen, and whether choosing it made sense."""
    clock = "" if result.clock == "steps" else f" Clock: {result.clock}."
    if not result.is_better:
        return (
            "On the half of the problems that decides, no prediction does better than the last observed "
            f"checkpoint; {result.chosen} comes nearest.{clock}"
        )
    return (
        f"Chosen on one half of the problems: {result.chosen}. The table below is on the other half.{clock}"
    )


def sweep_markdown(result: SweepResult) -> str:
    """Both tables as Markdown."""
    header, *rows = [list(map(markdown_text, cells)) for cells in _deciding_cells(result)]
    grid = markdown_table(header, rows, "l" + "r" * len(header[1:]))
    said = [markdown_text(line) for line in (*_on_columns(result), sentence(result))]
    return "\n\n".join([grid, *said, to_markdown(result.reporting)])


def sweep_rich(result: SweepResult) -> RenderableType:
    """The same for a terminal."""
    from rich.console import Group
    from rich.text import Text

    header, *rows = _deciding_cells(result)
    grid = rich_table(header, rows, "l" + "r" * len(header[1:]))
    said = [Text(terminal_line(line)) for line in (*_on_columns(result), sentence(result))]
    return Group(grid, *said, to_rich(result.reporting))


_OUTLOOK: dict[str, Callable[[GridPoint], str]] = {
    "horizon": lambda point: "" if point.horizon is None else f"{point.horizon:.3g}",
    "expected error": lambda point: (
        ""
        if point.expected_relative_error is None
        else with_stderr(point.expected_relative_error, point.expected_relative_error_stderr, 3)
    ),
    "trusted up to": lambda point: point.trusted_up_to or "",
}
"""Columns of what is known of a prediction beforehand."""


def _deciding_cells(result: SweepResult) -> list[list[str]]:
    """The header, then the rows by step."""
    own = {point.label: point for point in result.candidates if point.own_answers is not None}
    titles = {score.key: score.title for row in result.deciding.rows for score in row.scores}
    points = {point.label: point for point in result.candidates}
    outlook = [title for title in _OUTLOOK if any(_OUTLOOK[title](point) for point in points.values())]
    lines = [["on the half that decides", "step", *outlook, *(titles[key] for key in result.figures)]]
    lines[0] += ["own answers"] * bool(own)
    for row in sorted(result.deciding.rows, key=lambda row: -1 if row.step is None else row.step):
        name = row.label + " (chosen)" * (row.label == result.chosen)
        said = [_OUTLOOK[title](points[row.label]) if row.label in points else "" for title in outlook]
        lines.append([name, row.step_shown, *said, *(shown_figure(row.score(key)) for key in result.figures)])
        if own:
            lines[-1].append(_own_answers(own.get(row.label)))
    return lines


def _own_answers(point: GridPoint | None) -> str:
    if point is None or point.own_answers is None:
        return ""
    return format_figure(point.own_answers, signed=True) + " (fell)" * point.own_answers_fell


def _on_columns(result: SweepResult) -> list[str]:
    """What the columns say, where that has to be told."""
    said = []
    if any(point.expected_relative_error_stderr is not None for point in result.candidates):
        said.append(f"Expected errors come from a sample of the weights; {ONE}.")
    if any(point.own_answers_fell for point in result.candidates):
        said.append(
            "Own answers: where answers are short, all 36 predictions seen under which they fell by "
            f"{FALL:g} nats per answer or more were worse at the task than the last checkpoint; where long, "
            "not all were."
        )
    return said
