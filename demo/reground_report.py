"""Tables and plot of `demo/reground.py`, from its measurements alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BEGIN, END = "<!-- written by demo/reground.py -->", "<!-- end of what demo/reground.py wrote -->"
JUMP_COLORS = ("C1", "C3", "C2", "C4", "C5", "C6")


@dataclass(frozen=True)
class Arm:
    """One way to train; its runs differ in their seeds alone."""

    lr: float
    steps: int = 160
    m: int = 0
    """RL steps between jumps; 0 is plain RL."""
    n: int = 0
    moments: str = "keep"
    guard: str = "none"

    @property
    def name(self) -> str:
        """Names the folder of its runs, so everything that changes a run is in it."""
        parts = [f"m{self.m}-n{self.n}" if self.m else "plain"]
        parts += ["reset"] if self.moments == "reset" else []
        parts += [self.guard] if self.guard != "none" else []
        return "-".join([*parts, f"lr{self.lr:g}", f"steps{self.steps}"])

    @property
    def label(self) -> str:
        parts = [f"({self.m}, +{self.n})" if self.m else "plain RL"]
        parts += ["moments reset"] if self.moments == "reset" else []
        parts += [f"guard: {self.guard}"] if self.guard != "none" else []
        return ", ".join(parts)


class Comparison(NamedTuple):
    """Is `arm` at `step` better than `other` at `other_step`? Measured on the same problems, so paired."""

    arm: Arm
    step: int
    other: Arm
    other_step: int


@dataclass(frozen=True)
class Curve:
    """What one run scored."""

    arm: Arm
    seed: int
    steps: tuple[int, ...]
    """RL steps taken at each of the S measurements."""
    greedy: NDArray[np.float64]
    """(S, problems), 0 or 1."""
    sampled: NDArray[np.float64]
    """(S, problems), share of right samples."""
    decisions: list[dict[str, Any]]
    """Its history of jumps."""

    def sampled_at(self, step: int) -> NDArray[np.float64]:
        return np.asarray(self.sampled[self.steps.index(step)])


def write_report(output: Path, curves: Sequence[Curve], comparisons: Sequence[Comparison], every: int) -> str:
    """Write `accuracy.csv`, `tables.md` and `accuracy.png` into `output`; returns the tables, as markdown."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "accuracy.csv").write_text(csv(curves))
    tables = "\n\n".join(
        part
        for part in (
            accuracy_table(curves, every),
            comparison_table(curves, comparisons),
            decision_table(curves),
        )
        if part
    )
    (output / "tables.md").write_text(tables + "\n")
    plot(output / "accuracy.png", curves)
    return tables


def insert_tables(page: Path, tables: str) -> None:
    """Replace what stands between the two marks of the page."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page}: the marks {BEGIN} and {END} have to be there once each; restore them")
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{tables}\n{END}", text, flags=re.DOTALL))


def csv(curves: Sequence[Curve]) -> str:
    """One line a measurement: means over the problems, and the standard error of the sampled one."""
    lines = ["arm,learning_rate,seed,rl_steps,greedy,sampled,standard_error"]
    for curve in curves:
        for index, step in enumerate(curve.steps):
            greedy, sampled = curve.greedy[index].mean(), curve.sampled[index]
            lines.append(
                f'"{curve.arm.label}",{scientific(curve.arm.lr)},{curve.seed},{step},{greedy:.4f},{sampled.mean():.4f},'
                f"{standard_error(sampled):.4f}"
            )
    return "\n".join(lines) + "\n"


def accuracy_table(curves: Sequence[Curve], every: int) -> str:
    """Sampled accuracy ± its standard error along the shorter runs and where the longer end; seeds apart."""
    ends = sorted({curve.steps[-1] for curve in curves})
    parts = (ends[0] * part // 4 // every * every for part in (1, 2))
    steps = sorted({*ends, *(max(every, step) for step in parts)})
    rows = [["learning rate", "training", *(f"sampled at {step}" for step in steps), f"greedy at {ends[0]}"]]
    for arm, runs in by_arm(curves).items():
        cells = [
            " / ".join(figure(run.sampled_at(step)) if step in run.steps else "–" for run in runs)
            for step in steps
        ]
        greedy = " / ".join(short(run.greedy[run.steps.index(ends[0])].mean()) for run in runs)
        rows.append([scientific(arm.lr), arm.label, *cells, greedy])
    return markdown(rows)


def comparison_table(curves: Sequence[Curve], comparisons: Sequence[Comparison]) -> str:
    """Differences of sampled accuracy ± their paired standard error, seed by seed."""
    rows = [["this", "against", "difference"]]
    found = by_arm(curves)
    for arm, step, other, other_step in comparisons:
        cells = [
            figure(run.sampled_at(step) - against.sampled_at(other_step), sign=True)
            for run, against in zip(found[arm], found[other], strict=True)
        ]
        rows.append([described(arm, step), described(other, other_step), " / ".join(cells)])
    return markdown(rows)


def decision_table(curves: Sequence[Curve]) -> str:
    """What the guards decided and why, of each guarded arm's first run; empty without one."""
    rows = [["training", "RL steps", "n wanted", "decision", "reason in the log"]]
    for arm, runs in by_arm(curves).items():
        if arm.guard != "none":
            rows += [
                [
                    f"{arm.label}, lr {scientific(arm.lr)}",
                    str(decision["rl_steps"]),
                    str(decision["n_wanted"]),
                    decision["action"].replace("_", " "),
                    decision["reason"],
                ]
                for decision in runs[0].decisions
            ]
    return markdown(rows) if len(rows) > 1 else ""


def plot(path: Path, curves: Sequence[Curve]) -> None:
    """Sampled accuracy against RL steps, a panel a learning rate that has jumps: plain RL dashed."""
    groups = by_arm(curves)
    plain = sorted((arm for arm in groups if not arm.m), key=lambda arm: arm.lr)
    jumping = [arm for arm in groups if arm.m]
    rates = sorted({arm.lr for arm in jumping})
    figure = Figure(figsize=(6.4 * len(rates), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, lr in zip(panels, rates, strict=True):
        for number, arm in enumerate(plain):
            draw(panel, groups[arm], "--", colormaps["Blues"](0.35 + 0.6 * number / len(plain)))
        for number, arm in enumerate(arm for arm in jumping if arm.lr == lr):
            draw(panel, groups[arm], "-", JUMP_COLORS[number % len(JUMP_COLORS)])
        panel.set(title=f"jumps at learning rate {scientific(lr)}; plain RL dashed", xlabel="RL steps taken")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    panels[0].set_ylabel("sampled accuracy, a line a seed")
    figure.savefig(path, dpi=100)


def draw(panel: Axes, runs: Sequence[Curve], style: str, color: Any) -> None:
    for run in runs:
        label = f"{run.arm.label}, lr {scientific(run.arm.lr)}" if run is runs[0] else None
        panel.plot(run.steps, run.sampled.mean(1), style, color=color, lw=1.6, label=label)


def by_arm(curves: Sequence[Curve]) -> dict[Arm, list[Curve]]:
    """The runs of each arm in the order of their seeds; arms in the order they come in."""
    groups: dict[Arm, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.arm, []).append(curve)
    return {arm: sorted(runs, key=lambda run: run.seed) for arm, runs in groups.items()}


def described(arm: Arm, step: int) -> str:
    return f"{arm.label}, lr {scientific(arm.lr)}, at {step}"


def figure(of_problems: NDArray[np.float64], sign: bool = False) -> str:
    mean = of_problems.mean()
    shown = ("+" if mean >= 0 else "−") + short(abs(mean)) if sign else short(mean)
    return f"{shown} ± {short(standard_error(of_problems))}"


def standard_error(of_problems: NDArray[np.float64]) -> float:
    """Of the mean over problems; the sampling's part is in it, as each problem has its own samples."""
    return float(of_problems.std(ddof=1) / np.sqrt(len(of_problems)))


def scientific(value: float) -> str:
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
