"""Tables as text: for the terminal, for Markdown, and in plain sentences whether a prediction is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hubextrap.evaluation.table import LAST, PREDICTION, Difference, EvaluationTable, Row, Score
from hubextrap.foreign_text import markdown_text, terminal_line

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES_ABREAST = 2
"""So many fit a terminal of 100 columns beside the checkpoints, and half as many with their differences."""


def format_figure(value: float, stderr: float | None = None, *, signed: bool = False) -> str:
    """The one way in which figures are written: ``0.828``, ``0.828 ± 0.017``, signed ``+0.154``."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text if stderr is None or not math.isfinite(stderr) else f"{text} ± {stderr:.3f}"


def format_difference(difference: Difference) -> str:
    """``+0.154 [+0.121, +0.189] better``, or that there is no interval."""
    text = format_figure(difference.value, signed=True)
    if difference.interval is None:
        return f"{text} (no interval)"
    low, high = (format_figure(bound, signed=True) for bound in difference.interval)
    return f"{text} [{low}, {high}] {difference.verdict}"


def verdicts(table: EvaluationTable) -> tuple[str, ...]:
    """A sentence for every figure of every prediction: what it is beside the last observed checkpoint."""
    if table.last is None:
        return ()
    return tuple(
        _sentence(row.label, ours, theirs, difference)
        for row in table.rows
        if row.label.startswith(PREDICTION)
        for key in table.keys
        if (ours := row.score(key)) is not None
        and (theirs := table.last.score(key)) is not None
        and (difference := table.difference(row, key)) is not None
    )


def _sentence(label: str, ours: Score, theirs: Score, difference: Difference) -> str:
    change = format_figure(difference.value, signed=True)
    if difference.interval is not None:
        low, high = (format_figure(bound, signed=True) for bound in difference.interval)
        change += f", 95 % interval {low} to {high}"
    figures = f"{ours.title}: {format_figure(ours.value)} against {format_figure(theirs.value)} ({change})"
    last = "the last observed checkpoint"
    if difference.verdict is None:
        return (
            f"The {label} beside {last} on {figures}; the figure is no mean over problems, so nothing here "
            "says whether that is chance."
        )
    if difference.verdict == "no difference seen":
        return f"No difference seen between the {label} and {last} on {figures}."
    if difference.verdict == "different":
        return f"The {label} differs from {last} on {figures}."
    return f"The {label} is {difference.verdict} than {last} on {figures}."


def to_markdown(table: EvaluationTable) -> str:
    """One Markdown table of all figures, then notes and verdicts as paragraphs."""
    header = _header(table, table.keys)
    lines = [
        "| " + " | ".join(map(markdown_text, header)) + " |",
        "|---|--:|" + "--:|" * (len(header) - 3) + "---|",
    ]
    for row in table.rows:
        label, *figures, place = _cells(table, row, table.keys)
        lines.append("| " + " | ".join([markdown_text(label), *figures, markdown_text(place)]) + " |")
    said = map(markdown_text, (*verdicts(table), *table.notes))
    return "\n\n".join(["\n".join(lines), *said]) + "\n"


def to_rich(table: EvaluationTable) -> RenderableType:
    """The same for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    abreast = FIGURES_ABREAST if table.last is None else FIGURES_ABREAST // 2
    for start in range(0, len(table.keys), abreast):
        keys = table.keys[start : start + abreast]
        grid = Table(header_style="bold")
        for number, title in enumerate(header := _header(table, keys)):
            is_text = number in (0, len(header) - 1)
            grid.add_column(
                Text(terminal_line(title)), justify="left" if is_text else "right", overflow="fold"
            )
        for row in table.rows:
            grid.add_row(*map(Text, map(terminal_line, _cells(table, row, keys))))
        parts.append(grid)
    return Group(*parts, *map(Text, map(terminal_line, (*verdicts(table), *table.notes))))


def _header(table: EvaluationTable, keys: tuple[tuple[str, str, str], ...]) -> list[str]:
    scores = {score.key: score for row in table.rows for score in row.scores}
    titles = [
        scores[key].title + (" (lower is better)" if scores[key].higher_is_better is False else "")
        for key in keys
    ]
    if table.last is not None:
        titles = [column for title in titles for column in (title, f"vs {LAST}")]
    return ["checkpoint", "step", *titles, "reference"]


def _cells(table: EvaluationTable, row: Row, keys: tuple[tuple[str, str, str], ...]) -> list[str]:
    cells = [row.label, "" if row.step is None else str(row.step)]
    for key in keys:
        score, difference = row.score(key), table.difference(row, key)
        cells.append("" if score is None else format_figure(score.value, score.stderr))
        if table.last is not None:
            cells.append("" if difference is None else format_difference(difference))
    return [*cells, row.place]
