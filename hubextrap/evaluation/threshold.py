"""What a prediction has to reach: `--max-loss`, `--min-score`, `--push-if-better`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from hubextrap.errors import EvaluationError, PredictionWorse
from hubextrap.evaluation.outcomes import outcome_of
from hubextrap.evaluation.render import format_figure
from hubextrap.evaluation.table import LAST, PREDICTION, EvaluationTable, Key, Row, Score
from hubextrap.foreign_text import own_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_ROUNDING = 1e-9
"""0.1 - 0.08 is a little more than 0.02."""


@dataclass(frozen=True, slots=True)
class JudgedFigure:
    """One figure of one prediction, and what was asked of it."""

    step: int | None
    task: str
    """As tables call it: ``radd exact_match``."""
    value: float
    last: float | None
    """The last observed checkpoint's; None where the bound asks for none."""
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate said of some tables."""

    figures: tuple[JudgedFigure, ...]

    @property
    def passed(self) -> bool:
        return all(figure.passed for figure in self.figures)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(figure.sentence for figure in self.figures if not figure.passed)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"passed": self.passed, "figures": [asdict(figure) for figure in self.figures]}

    def refuse(self, *remarks: str) -> None:
        """Raise what did not pass, if anything did not.

        Args:
            remarks: what else there is to say then, a line each.

        Raises:
            PredictionWorse: one sentence for each figure.
        """
        if not self.passed:
            raise PredictionWorse(own_lines(*self.failures, *remarks))


@dataclass(frozen=True, slots=True)
class Gate:
    """What every prediction has to reach on each task, in the unit of the task's main figure.

    The main figure is the first that says which direction is better, in the order in which lm-eval lists
    them. A group with a figure of its own is judged by that and not by its members.
    """

    max_loss: float | None = None
    """How much worse than the last observed checkpoint it may be; below 0, how much better it has to be."""
    min_score: float | None = None
    """What it may not be worse than, on tasks that ``min_scores`` does not name."""
    min_scores: Mapping[str, float] = field(default_factory=dict)
    """The same for single tasks, by name."""
    push_if_better: bool = False
    """A run measures it in its folder, and pushes it from there, as it was measured, only if all pass.
    Without a bound, none may be worse than the last observed checkpoint by more than chance."""

    def __post_init__(self) -> None:
        bounds = [self.max_loss, self.min_score, *self.min_scores.values()]
        if not all(bound is None or isfinite(bound) for bound in bounds):
            raise EvaluationError("a bound of --max-loss or --min-score is no number; write one, e.g. 0.02")

    @property
    def not_worse(self) -> bool:
        """Whether chance is what it may be worse by."""
        bounded = self.max_loss is not None or self.min_score is not None or bool(self.min_scores)
        return self.push_if_better and not bounded

    @property
    def compares(self) -> bool:
        """Whether it takes the last observed checkpoint."""
        return self.max_loss is not None or self.not_worse

    @property
    def option(self) -> str:
        """What messages call it."""
        asked = {"--push-if-better": self.not_worse, "--max-loss": self.max_loss is not None}
        return next((name for name, given in asked.items() if given), "--min-score")

    def check(self, labels: Collection[str], tasks: Collection[str]) -> None:
        """Find out before hours of work whether there will be something to judge.

        Args:
            labels: of the rows that will be measured.
            tasks: the tasks, groups, tags and files of problems that are asked for, by name.

        Raises:
            EvaluationError: no row is a prediction, or none the last observed checkpoint where that is taken;
                or a bound is for a task that is not asked for.
        """
        if not any(label.startswith(PREDICTION) for label in labels):
            raise EvaluationError(
                f"{self.option}: none of the models has a hubextrap.json, so there is no prediction to "
                "judge; name one, or leave the option out"
            )
        if self.compares and LAST not in labels:
            raise EvaluationError(
                f"{self.option}: there is no last observed checkpoint to compare with; "
                f"name it: --against {LAST}=REF, or {LAST} in the recipe's evaluate.against"
            )
        for task in self.min_scores:
            if task not in tasks:
                raise EvaluationError(
                    f"--min-score {task}=…: {task} is not evaluated, but {', '.join(sorted(tasks)[:10])}; "
                    "write one of these, or the number alone for all of them"
                )

    def judge(self, tables: Sequence[EvaluationTable], tasks: Collection[str]) -> GateResult:
        """Hold the predictions of some tables against the bounds.

        Args:
            tasks: the tasks, groups and tags that were asked for.

        Raises:
            EvaluationError: a table holds nothing that could be judged.
        """
        rows = [(table, row) for table in tables for row in table.rows if row.label.startswith(PREDICTION)]
        several = len(rows) > 1
        figures: list[JudgedFigure] = []
        for table in tables:
            self.check([row.label for row in table.rows], [*tasks, *table.settings.task_files])
        for table, row in rows:
            for key in main_keys(table, tasks):
                figures += self._judged(table, row, key, f"step {row.step_shown}: " if several else "")
        judged = {key[0] for table in tables for key in main_keys(table, tasks)}
        if unheard := sorted(self.min_scores.keys() - judged):
            raise EvaluationError(
                f"--min-score {unheard[0]}=…: only the tasks of {unheard[0]} have figures; give the number "
                "alone"
            )
        if not figures:
            raise EvaluationError(
                f"{self.option}: no figure of a prediction can be judged; leave the option out"
            )
        return GateResult(tuple(figures))

    def _judged(self, table: EvaluationTable, row: Row, key: Key, which: str) -> Iterator[JudgedFigure]:
        ours, theirs = row.score(key), None if table.last is None else table.last.score(key)
        if ours is None:
            return
        bound = self.min_scores.get(key[0], self.min_score)
        if bound is not None:
            passed = _gain(ours, bound) >= -_ROUNDING
            yield JudgedFigure(
                row.step, ours.title, ours.value, None, passed, which + _reached(ours, bound, passed)
            )
        if theirs is None or not self.compares:
            return
        said = []
        if self.max_loss is not None:
            said.append(_kept(ours, theirs, self.max_loss))
        if self.not_worse:
            said.append(_not_worse(table, row, ours, theirs))
        for passed, sentence in said:
            yield JudgedFigure(row.step, ours.title, ours.value, theirs.value, passed, which + sentence)


def main_keys(table: EvaluationTable, tasks: Collection[str]) -> list[Key]:
    """The figure by which each task is judged.

    Raises:
        EvaluationError: no task says whether higher figures are better.
    """
    first = table.main_keys()
    wanted = dict.fromkeys([*tasks, *table.settings.task_files])
    # A tag has no figure of its own: its members are judged, and nobody knows which they are.
    judged = wanted if all(task in first for task in wanted) else first
    if not judged:
        raise EvaluationError(
            "none of the tasks says whether higher figures are better, so nothing can be judged; leave out "
            "--max-loss, --min-score and --push-if-better"
        )
    return [first[task] for task in judged]


def _gain(ours: Score, reference: float) -> float:
    return ours.value - reference if ours.higher_is_better else reference - ours.value


def _reached(ours: Score, bound: float, passed: bool) -> str:
    """A figure beside --min-score, in words."""
    value, asked = format_figure(ours.value), f"the {bound:g} that --min-score asks for"
    if ours.higher_is_better:
        return f"{ours.title} is {value}, {'at least' if passed else 'below'} {asked}"
    return f"{ours.title} is {value}, {'at most' if passed else 'above'} {asked} (lower is better)"


def _kept(ours: Score, theirs: Score, max_loss: float) -> tuple[bool, str]:
    """A figure beside --max-loss: whether it passes, and the sentence."""
    passed = -_gain(ours, theirs.value) <= max_loss + _ROUNDING  # not where either is not a number
    option = f"--max-loss {max_loss:g}"
    if max_loss < 0:
        return passed, _moved(ours, theirs, f"; {option} asks for a gain of at least {-max_loss:g}")
    if not isfinite(ours.value - theirs.value):
        return passed, _moved(ours, theirs, f", which {option} {'allows' if passed else 'does not allow'}")
    if passed:
        allowed = f"a loss of {max_loss:g}" if max_loss else "no loss"
        return passed, _moved(ours, theirs, f"; {option} allows {allowed}")
    refused = f", more than {option} allows" if max_loss else f", and {option} allows no loss"
    return passed, _moved(ours, theirs, refused)


def _not_worse(table: EvaluationTable, row: Row, ours: Score, theirs: Score) -> tuple[bool, str]:
    """A figure beside --push-if-better without bounds: whether it passes, and the sentence."""
    outcome = outcome_of(table, row, ours.key).outcome
    if outcome in ("better", "worse"):
        return outcome == "better", _moved(ours, theirs, ", more than chance")
    if outcome == "no difference":
        return True, _moved(ours, theirs, ", no more than chance")
    passed = _gain(ours, theirs.value) >= -_ROUNDING  # nothing says what is chance
    return passed, _moved(ours, theirs, "" if passed else ", and nothing says whether that is chance")


def _moved(ours: Score, theirs: Score, remark: str) -> str:
    """``radd exact_match fell by 0.034REMARK (0.596, last 0.630)``."""
    change = ours.value - theirs.value
    values = f"{format_figure(ours.value)}, last {format_figure(theirs.value)}"
    if not ours.higher_is_better:
        values += "; lower is better"
    if not isfinite(change):
        what = "is no number"
    elif abs(change) <= _ROUNDING:
        what = "stayed as it was"
    else:
        by = format_figure(abs(change)) if abs(change) >= 0.0005 else f"{abs(change):.2g}"
        what = f"{'rose' if change > 0 else 'fell'} by {by}"
    return f"{ours.title} {what}{remark} ({values})"
