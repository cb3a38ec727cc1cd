"""Score against step, as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hubextrap.evaluate.sweep_report import SweepResult


def can_draw() -> bool:
    """Whether matplotlib (the extra ``report``) is installed."""
    return find_spec("matplotlib") is not None


def draw_sweep(result: SweepResult, path: Path) -> None:
    """Write a PNG: a panel for each figure, a line for each damping, and the observed checkpoints.

    Figures are over all problems; the bars are one standard error.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = result.figures
    figure = Figure(figsize=(6.4 * len(keys), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    rows = {row.label: row for row in result.all_problems.rows}
    grid = {candidate.label for candidate in result.candidates}
    for key, axes in zip(keys, figure.subplots(1, len(keys), squeeze=False)[0], strict=True):
        dampings = sorted({candidate.damping for candidate in result.candidates}, reverse=True)
        for damping in dampings:
            scores = [
                (candidate.step, score)
                for candidate in sorted(result.candidates, key=lambda each: each.step)
                if candidate.damping == damping and (score := rows[candidate.label].score(key)) is not None
            ]
            label = "predicted" + (f", damping {damping:g}" if len(dampings) > 1 else "")
            axes.errorbar(
                [step for step, _ in scores],
                [score.value for _, score in scores],
                [score.stderr or 0.0 for _, score in scores],
                marker="o",
                capsize=2,
                label=label,
            )
        observed = [
            (row.step, score)
            for row in rows.values()
            if row.label not in grid and row.step is not None and (score := row.score(key)) is not None
        ]
        axes.errorbar(
            [step for step, _ in observed],
            [score.value for _, score in observed],
            [score.stderr or 0.0 for _, score in observed],
            color="black",
            linestyle="none",
            marker="s",
            capsize=2,
            label="observed",
        )
        axes.set_xlabel("step")
        axes.set_ylabel(rows[result.chosen].score(key).title)  # type: ignore[union-attr]
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
