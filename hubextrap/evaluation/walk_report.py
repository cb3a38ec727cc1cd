"""What a walk found: how likely own answers are at each step, which step was chosen, and what that gained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from hubextrap.evaluation.render import format_figure, markdown_table, rich_table
from hubextrap.evaluation.table import Part
from hubextrap.foreign_text import markdown_text, terminal_line
from hubextrap.notebooks import counted, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

JSON_FILE, TEXT_FILE, PICTURE_FILE = "walk.json", "walk.md", "walk.png"
ChosenBy = Literal["own_answers", "correct_answers", "score"]
_MEASURES: dict[ChosenBy, str] = {
    "own_answers": "log-probability of own greedy answers (nats per answer)",
    "correct_answers": "log-probability of own right answers (nats per answer)",
    "score": "share of answers that are right",
}


class WalkPoint(Part):
    """A step that was looked at."""

    step: int
    horizon: float | None
    """(step − last) / (last − first); None where there is one checkpoint."""
    value: float
    """By which the step is chosen: nats per answer, or the share of answers that are right."""


class LeftOut(Part):
    """A step that the method cannot predict, or that the recipe forbids."""

    step: int
    reason: str


class WalkReport(Part):
    """The walk from the last checkpoint on."""

    format: int = 1
    by: ChosenBy
    up_to: int
    """How far it was to look."""
    at_peak_rate: bool = False
    """Behind the last checkpoint steps count full-rate steps; the run itself has no such ones."""
    prompts: int
    answers: int
    """That were scored at each step or, by score, drawn there."""
    answer_tokens: int
    """Of the answers that were drawn from the last checkpoint."""
    curve: tuple[WalkPoint, ...]
    """In the order of the steps; the first is the last checkpoint itself."""
    left_out: tuple[LeftOut, ...] = ()
    chosen: int
    """The step where the value is highest; the nearest one if several are."""
    method: str
    """The recipe's; ``persistence`` where the last checkpoint itself is best."""
    score_of_last: float | None = None
    """The share of its samples that are right, where the right ones were kept."""
    score_of_chosen: float | None = None

    def __repr__(self) -> str:
        looked = f"{counted(len(self.curve), 'step')} up to {self.up_to} by {self.by}"
        return one_line(self, looked, f"chosen: step {self.chosen}")

    __str__ = __repr__

    @property
    def best(self) -> WalkPoint:
        """The chosen point."""
        return next(point for point in self.curve if point.step == self.chosen)

    @property
    def stays(self) -> bool:
        """Whether the last checkpoint itself is best."""
        return self.chosen == self.curve[0].step

    @property
    def gained(self) -> float:
        """What the chosen step has more than the last checkpoint, in the unit of the values."""
        return 0.0 if self.stays else self.best.value - self.curve[0].value

    def parameters(self) -> dict[str, Any]:
        """What provenance says of it."""
        values = {str(point.step): _finite(point.value) for point in self.curve}
        said = {"at_peak_rate": True} if self.at_peak_rate else {}
        return {"by": self.by, "up_to": self.up_to, **said, "prompts": self.prompts, "values": values}


def best_of(curve: tuple[WalkPoint, ...]) -> WalkPoint:
    """The point with the highest value, the nearest if several have it."""
    return max(curve, key=lambda point: point.value)  # the first of them


def walk_sentence(report: WalkReport) -> str:
    """What was chosen, in a sentence."""
    last, best = report.curve[0], report.best
    rate = " at the peak rate" if report.at_peak_rate else ""
    among = f"of the steps {last.step} … {report.curve[-1].step}{rate} that were looked at"
    if report.by == "score":
        kind = "the most answers are right"
    else:
        right = " right" if report.by == "correct_answers" else ""
        kind = f"the last checkpoint's own{right or ' greedy'} answers are likeliest"
    if report.stays:
        return (
            f"The last checkpoint itself, step {last.step}, is best: {among}, {kind} there, so nothing is "
            "predicted (persistence)."
        )
    unit = "" if report.by == "score" else " nats per answer"
    horizon = "" if best.horizon is None else f" (horizon {best.horizon:.3g})"
    text = (
        f"The step was chosen by a walk: {among}, {kind} at step {best.step}{rate}{horizon}, "
        f"{format_figure(report.gained, signed=True)}{unit} beside the last checkpoint."
    )
    if report.score_of_last is not None and report.score_of_chosen is not None:
        text += (
            f" Of samples on the same prompts, {format_figure(report.score_of_chosen)} are right there and "
            f"{format_figure(report.score_of_last)} at the last checkpoint."
        )
    return text


def walk_markdown(report: WalkReport) -> str:
    """The curve as Markdown."""
    header, *rows = [list(map(markdown_text, cells)) for cells in _cells(report)]
    said = [markdown_text(line) for line in (walk_sentence(report), *_left_out(report))]
    return "\n\n".join([markdown_table(header, rows, "rrrrl"), *said]) + "\n"


def walk_rich(report: WalkReport) -> RenderableType:
    """The same for a terminal."""
    from rich.console import Group
    from rich.text import Text

    header, *rows = _cells(report)
    said = [Text(terminal_line(line)) for line in (walk_sentence(report), *_left_out(report))]
    return Group(rich_table(header, rows, "rrrrl"), *said)


def walk_measure(report: WalkReport) -> str:
    """What the values are."""
    return _MEASURES[report.by]


def _cells(report: WalkReport) -> list[list[str]]:
    step = "step at the peak rate" if report.at_peak_rate else "step"
    lines = [[step, "horizon", _MEASURES[report.by], "beside the last checkpoint", ""]]
    start = report.curve[0].value
    for point in report.curve:
        gained = 0.0 if point.value == start else point.value - start  # both may be −∞
        beside = "" if point is report.curve[0] else format_figure(gained, signed=True)
        horizon = "" if point.horizon is None else f"{point.horizon:.3g}"
        mark = "chosen" if point.step == report.chosen else ""
        lines.append([str(point.step), horizon, format_figure(point.value), beside, mark])
    return lines


def _left_out(report: WalkReport) -> list[str]:
    return [
        f"Step {each.step} was left out: {each.reason.removeprefix(f'step {each.step}: ')}"
        for each in report.left_out
    ]


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
