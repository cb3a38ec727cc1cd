"""Tables as text: for the terminal, for Markdown, and the plain sentence when a prediction is worse."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hubextrap.evaluate.table import LAST, PREDICTION, EvaluationTable, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES_ABREAST = 2
"""So many fit a terminal of 100 columns beside the checkpoints; more go into tables below."""


def format_figure(value: float, stderr: float | None = None, *, signed: bool = False) -> str:
    """The one way in which figures are written: ``0.828``, ``0.828 ± 0.017``, signed ``+0.154``."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text if stderr is None or not math.isfinite(stderr) else f"{text} ± {stderr:.3f}"


def verdicts(table: EvaluationTable) -> tuple[str, ...]:
    """A sentence for every figure in which a prediction is worse than the last observed checkpoint."""
    sentences: list[str] = []
    if table.last is None:
        return ()
    for row in table.rows:
        if not row.label.startswith(PREDICTION):
            continue
        for key in table.keys:
            ours, theirs, difference = row.score(key), table.last.score(key), table.difference(row, key)
            if ours is None or theirs is None or difference is None or not difference.is_worse:
                continue
            change = format_figure(difference.value, difference.stderr, signed=True)
            noise = ", within the noise of this evaluation" if difference.within_noise else ""
            sentences.append(
                f"The {row.label} is worse than the last observed checkpoint on {ours.title}: "
                f"{format_figure(ours.value)} against {format_figure(theirs.value)} ({change}){noise}."
            )
    return tuple(sentences)


def to_markdown(table: EvaluationTable) -> str:
    """One Markdown table of all figures, then notes and verdicts as paragraphs."""
    header = _header(table, table.keys)
    lines = ["| " + " | ".join(header) + " |", "|---|--:|" + "--:|" * (len(header) - 3) + "---|"]
    lines += ["| " + " | ".join(_cells(table, row, table.keys)) + " |" for row in table.rows]
    return "\n\n".join(["\n".join(lines), *verdicts(table), *table.notes]) + "\n"


def to_rich(table: EvaluationTable) -> RenderableType:
    """The same for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for start in range(0, len(table.keys), FIGURES_ABREAST):
        keys = table.keys[start : start + FIGURES_ABREAST]
        grid = Table(header_style="bold")
        for number, title in enumerate(header := _header(table, keys)):
            is_text = number in (0, len(header) - 1)
            grid.add_column(Text(title), justify="left" if is_text else "right", overflow="fold")
        for row in table.rows:
            grid.add_row(*map(Text, _cells(table, row, keys)))
        parts.append(grid)
    return Group(*parts, *map(Text, (*verdicts(table), *table.notes)))


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
            cells.append("" if difference is None else format_figure(difference.value, signed=True))
    return [*cells, row.place]
