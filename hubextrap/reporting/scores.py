"""Plots of what was rehearsed and what was evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hubextrap.evaluation.table import LAST
from hubextrap.foreign_text import plot_text
from hubextrap.reporting.style import BLUE, FAINT, INK, SERIES, VERMILION
from hubextrap.statistics import horizon_classes, horizon_means, pair_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hubextrap.reporting.accuracy import Accuracy
    from hubextrap.statistics import Backtest

FLOOR = 0.05
"""Errors below are drawn here: the axis is logarithmic."""


def draw_backtest(figure: Figure, backtest: Backtest) -> None:
    """The best six methods in colour, the others in grey; the line at 1 is the last checkpoint itself."""
    axes = figure.subplots()
    seen = [place for place, count in enumerate(pair_counts(backtest)) if count]
    ranked = [entry for entry in horizon_means(backtest) if entry.method != "persistence"]
    for position, entry in enumerate(ranked):
        means = [max(entry.means[place] or 0.0, FLOOR) for place in seen]
        if position < len(SERIES):
            colour, marker = SERIES[position]
            axes.plot(means, marker=marker, color=colour, label=plot_text(entry.method), zorder=10 - position,
                      linewidth=2.6 if position == 0 else 1.4)  # fmt: skip
            stderrs = [entry.stderrs[place] or 0.0 for place in seen]
            if backtest.sampled is not None:
                axes.errorbar(range(len(seen)), means, stderrs, fmt="none", ecolor=colour, capsize=3,
                              elinewidth=1.2, zorder=10 - position)  # fmt: skip
        else:
            axes.plot(means, marker=".", color=FAINT, linewidth=1, zorder=1,
                      label="others" if position == len(SERIES) else None)  # fmt: skip
    axes.axhline(1, color=INK, linewidth=1.4)
    axes.annotate("1: the last checkpoint", (0.99, 1), (0, 3), ("axes fraction", "data"), "offset points",
                  ha="right", va="bottom", fontsize=9, zorder=20,
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})  # fmt: skip
    titles = [title.replace(" (", "\n(") for title in horizon_classes(backtest)]
    axes.set_xticks(range(len(seen)), [titles[place] for place in seen])
    axes.set_xlim(-0.2, len(seen) - 0.8)
    measured = "mean relative error" + " of the signal" * backtest.rounded
    axes.set(xlabel="horizon: (target − last) ÷ (last − first)", ylabel=measured, yscale="log")
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)


def draw_accuracy(figure: Figure, accuracy: Accuracy) -> None:
    axes = figure.subplots()
    line: dict[str, Any] = {"fmt": "o-", "color": BLUE, "zorder": 2}
    hollow: dict[str, Any] = {"fmt": "D", "color": VERMILION, "zorder": 3, "markersize": 9}
    hollow["markerfacecolor"] = "none"  # the real checkpoint may lie inside
    for points, label, look in (
        (accuracy.observed, "observed checkpoints", line),
        (accuracy.predicted, "predictions", hollow),
    ):
        if points:
            axes.errorbar(
                [float(point.step or 0) for point in points],
                [point.value for point in points],
                [1.96 * (point.stderr or 0.0) for point in points],
                label=label, markeredgewidth=1.8, capsize=3, linewidth=1.6, **look,
            )  # fmt: skip
    values = [point.value for point in accuracy.points]
    if values and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(max(0.0, min(values) - 0.1), min(1.05, max(values) + 0.1))
    axes.set(xlabel="step", ylabel=plot_text(accuracy.title))
    axes.legend(loc="best")


def gain(accuracy: Accuracy) -> list[tuple[str, float, float, float | None]]:
    """(label, score, that of the last observed checkpoint, that of the real one) of each prediction."""
    last = next((other.value for other in accuracy.observed if other.label == LAST), None)
    real = {other.step: other.value for other in reversed(accuracy.observed)}
    return [
        (point.label, point.value, last, real.get(point.step))
        for point in accuracy.predicted
        if last is not None and np.isfinite(point.value)
    ]
