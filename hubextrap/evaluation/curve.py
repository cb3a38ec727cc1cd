"""Score against step, as a picture."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING, Any

from hubextrap.containment import open_regular
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import MissingExtra, OutputError
from hubextrap.evaluation.slopes import PER, Slope, score_interval
from hubextrap.evaluation.table import PREDICTION, check_writable, first_by_task
from hubextrap.evaluation.walk_report import walk_measure
from hubextrap.extras import require
from hubextrap.foreign_text import plot_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from hubextrap.evaluation.step_scores import StepScores
    from hubextrap.evaluation.sweep_report import SweepResult
    from hubextrap.evaluation.table import EvaluationTable, Key, Score
    from hubextrap.evaluation.walk_report import WalkReport


_MOST_PANELS = 12
"""Of tasks, and of what a trainer logged: a picture has room for so many."""


def drawing_problem() -> str | None:
    """What keeps plots from being drawn here; None where nothing does."""
    try:
        require("report", "a plot")
    except MissingExtra as error:
        return str(error)
    return None


def draw_sweep(result: SweepResult, path: Path) -> None:
    """Write a PNG: a panel for each figure that decided, a line for each damping, observed checkpoints."""
    lines: dict[str, list[str]] = {}
    several = len({candidate.damping for candidate in result.candidates}) > 1
    for candidate in sorted(result.candidates, key=lambda candidate: candidate.strength, reverse=True):
        damping = "auto" if candidate.damping == "auto" else f"{candidate.damping:g}"
        lines.setdefault("predicted" + f", damping {damping}" * several, []).append(candidate.label)
    _draw(result.all_problems, result.figures, lines, path)


def draw_table(table: EvaluationTable, path: Path) -> None:
    """Write a PNG: a panel for the first figure of each task, predictions and observed checkpoints."""
    predicted = [row.label for row in table.rows if row.label.startswith(PREDICTION)]
    _draw(table, list(first_by_task(table.keys).values()), {"predicted": predicted}, path)


def check_drawable(path: Path) -> None:
    """Find out before hours of work whether a picture can be drawn and put at ``path``.

    Raises:
        MissingExtra: matplotlib cannot be imported.
        OutputError: it cannot be written, or another file than a PNG is there.
    """
    require("report", "a plot")
    check_writable(path)
    if path.exists():
        with os.fdopen(open_regular(path), "rb") as file:
            if not b"\x89PNG".startswith(file.read(4)):
                what = "is there already and is no picture; remove it, or name another file"
                raise OutputError(f"{path}: {what}", file=path)


def draw_steps(scores: StepScores, path: Path) -> None:
    """Write a PNG: a panel for the first figure of each task, and one for each main column of the trainer's.

    Bars are the 95 % interval of a score; the line at the end is the slope's.
    """
    logged = [column for column in scores.logged if column.is_main] or scores.logged
    logged = logged[:_MOST_PANELS]
    keys = [] if scores.table is None else list(first_by_task(scores.table.keys).values())[:_MOST_PANELS]
    slopes = {slope.title: slope for slope in scores.slopes}
    abreast = min(len(keys) + len(logged), 3)
    rows = -(-(len(keys) + len(logged)) // abreast)
    figure = _figure(abreast, rows)
    panels = iter(figure.subplots(rows, abreast, squeeze=False).flat)
    for key in keys:
        assert scores.table is not None
        axes, title = next(panels), ""
        for name, predicted, look in (("checkpoints", False, "o-"), ("predictions", True, "D")):
            found = [
                (row.step, score)
                for row in scores.table.rows
                if row.label.startswith(PREDICTION) == predicted and row.step is not None
                if (score := row.score(key)) is not None
            ]
            if found:
                title = found[0][1].title
                steps, figures = zip(*found, strict=True)
                axes.errorbar(
                    steps, [one.value for one in figures], _bars(figures), fmt=look, capsize=2, label=name
                )
        _finish_panel(axes, title, slopes.get(title))
    for column in logged:
        axes = next(panels)
        axes.plot(column.steps, column.values, ".-", label="logged by the trainer")
        _finish_panel(axes, column.name, slopes.get(f"the trainer's {column.name}"))
    for axes in panels:
        axes.set_axis_off()
    write_whole(path, _as_png(figure), remedy="name another file with --plot")


def _bars(scores: Sequence[Score]) -> list[list[float]]:
    """How far each interval goes down and up."""
    bounds = [score_interval(score) or (score.value, score.value) for score in scores]
    pairs = list(zip(scores, bounds, strict=True))
    return [
        [max(0.0, score.value - low) for score, (low, _) in pairs],
        [max(0.0, high - score.value) for score, (_, high) in pairs],
    ]


def _finish_panel(axes: Any, title: str, slope: Slope | None) -> None:
    if slope is not None:
        ends = (slope.first_step, slope.last_step)
        start = slope.value - slope.per_100_steps / PER * (ends[1] - ends[0])
        axes.plot(
            ends,
            (start, slope.value),
            "k--",
            linewidth=1,
            label=f"{slope.per_100_steps:+.3g} per {PER} steps",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(plot_text(title))
    axes.grid(alpha=0.3)
    axes.legend()


def walk_picture(report: WalkReport) -> bytes:
    """The curve of a walk as a PNG; what is no number, as of a model that has broken, is left out."""
    figure = _figure(1)
    axes = figure.subplots()
    shown = [point for point in report.curve if isfinite(point.value)]
    axes.plot([point.step for point in shown], [point.value for point in shown], "-o", label="predicted")
    for step, look, name in ((report.curve[0].step, "ks", "last"), (report.chosen, "r*", "chosen")):
        found = [point.value for point in shown if point.step == step]
        axes.plot([step] * len(found), found, look, markersize=9, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(walk_measure(report))
    axes.grid(alpha=0.3)
    axes.legend()
    return _as_png(figure)


def _draw(
    table: EvaluationTable,
    keys: Sequence[Key],
    lines: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Figures are over all problems; the bars are one standard error.

    Args:
        lines: labels of rows that one line joins, by what the legend calls it; other rows were observed.
    """
    figure = _figure(len(keys))
    joined = {label for labels in lines.values() for label in labels}
    observed = [row.label for row in table.rows if row.label not in joined]
    for key, axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        for name, labels in (*lines.items(), ("observed", observed)):
            points = sorted(
                (row.step, score.value, score.stderr or 0.0)
                for row in table.rows
                if row.label in labels and row.step is not None and (score := row.score(key)) is not None
            )
            if points:
                steps, values, errors = zip(*points, strict=True)
                look = {"linestyle": "none", "color": "black", "marker": "s"}
                look = look if labels is observed else {"linestyle": "-", "marker": "o"}
                axes.errorbar(steps, values, errors, capsize=2, label=plot_text(name), **look)
        axes.set_xlabel("step")
        axes.set_ylabel(plot_text(" ".join(key[:2])))
        axes.grid(alpha=0.3)
        axes.legend()
    write_whole(path, _as_png(figure), remedy="choose another --out")


def _figure(panels: int, rows: int = 1) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * panels, 4.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _as_png(figure: Figure) -> bytes:
    drawn = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name may have letters that no font here has
        figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    return drawn.getvalue()
