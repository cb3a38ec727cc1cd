"""Tables as text: for the terminal, for Markdown, and in plain sentences whether a prediction is better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hubextrap.evaluation.table import LAST, PREDICTION, Difference, EvaluationTable, Row, Score
from hubextrap.foreign_text import markdown_text, terminal_line
from hubextrap.narrow import NarrowTable
from hubextrap.notebooks import html_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from hubextrap.evaluation.table import Key

FIGURES_ABREAST = 2
"""So many fit a terminal of 100 columns beside the checkpoints, and half as many with their differences."""


def format_figure(value: float, stderr: float | None = None, *, signed: bool = False) -> str:
    """The one way in which figures are written: ``0.828``, ``0.828 ± 0.017``, signed ``+0.154``."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text if stderr is None or not math.isfinite(stderr) else f"{text} ± {stderr:.3f}"


def shown_figure(score: Score | None) -> str:
    """A cell of a table."""
    return "" if score is None else format_figure(score.value, score.stderr)


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
    on = f"the last observed checkpoint on {figures}"
    if difference.verdict is None:
        return (
            f"The {label} beside {on}; the figure is no mean over problems, so nothing here says whether "
            "that is chance."
        )
    if difference.verdict == "no difference seen":
        return f"No difference seen between the {label} and {on}."
    if difference.verdict == "different":
        return f"The {label} differs from {on}."
    return f"The {label} is {difference.verdict} than {on}."


def to_markdown(table: EvaluationTable) -> str:
    """One Markdown table of all figures, then notes and verdicts as paragraphs."""
    header = _header(table, table.keys)
    cells = [_cells(table, row, table.keys) for row in table.rows]
    rows = [[markdown_text(label), *figures, markdown_text(place)] for label, *figures, place in cells]
    said = map(markdown_text, (*verdicts(table), *table.notes))
    return "\n\n".join([markdown_table(list(map(markdown_text, header)), rows, _sides(header)), *said]) + "\n"


def to_html(table: EvaluationTable) -> str:
    """The same for a notebook."""
    cells = [_cells(table, row, table.keys) for row in table.rows]
    return html_table("evaluation", _header(table, table.keys), cells, (*verdicts(table), *table.notes))


def to_rich(table: EvaluationTable) -> RenderableType:
    """The same for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    abreast = FIGURES_ABREAST if table.last is None else FIGURES_ABREAST // 2
    for start in range(0, len(table.keys), abreast):
        keys = table.keys[start : start + abreast]
        *header, _ = _header(table, keys)  # references are long, and go below
        cells = [_cells(table, row, keys)[:-1] for row in table.rows]
        parts.append(rich_table(header, cells, _sides([*header, ""])[:-1]))
    said = [*(f"{row.label}: {row.place}" for row in table.rows), *verdicts(table), *table.notes]
    return Group(*parts, *map(Text, map(terminal_line, said)))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], sides: str) -> str:
    """A table of cells that are Markdown already; ``sides`` has an ``l`` or an ``r`` for each column."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    lines.insert(1, "|" + "".join("---|" if side == "l" else "--:|" for side in sides))
    return "\n".join(lines)


def rich_table(header: Sequence[str], rows: Iterable[Sequence[str]], sides: str) -> NarrowTable:
    """The same of plain texts, for a terminal."""
    return NarrowTable(header, list(rows), sides, lines=True)


def _sides(header: Sequence[str]) -> str:
    return "l" + "r" * (len(header) - 2) + "l"


def _header(table: EvaluationTable, keys: Sequence[Key]) -> list[str]:
    scores = {score.key: score for row in table.rows for score in row.scores}
    lower = [" (lower is better)" * (scores[key].higher_is_better is False) for key in keys]
    titles = [scores[key].title + remark for key, remark in zip(keys, lower, strict=True)]
    if table.last is not None:
        titles = [column for title in titles for column in (title, f"vs {LAST}")]
    return ["checkpoint", "step", *titles, "reference"]


def _cells(table: EvaluationTable, row: Row, keys: Sequence[Key]) -> list[str]:
    cells = [row.label, row.step_shown]
    for key in keys:
        cells.append(shown_figure(row.score(key)))
        if table.last is not None:
            difference = table.difference(row, key)
            cells.append("" if difference is None else format_difference(difference))
    return [*cells, row.place]
