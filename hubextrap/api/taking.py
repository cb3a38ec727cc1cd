"""A new checkpoint of a watched run, taken as if the run ended there: what is said, and what is made."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hubextrap.api.drafting import choose_method
from hubextrap.api.predicting import predict
from hubextrap.api.staging import may_be_finished
from hubextrap.clocks import horizon_of
from hubextrap.hub import PushTarget
from hubextrap.methods import farthest_horizon
from hubextrap.progress import SilentProgress
from hubextrap.recipe.commands import command_line, filled
from hubextrap.regrounding.command import how_ended
from hubextrap.statistics import (
    HORIZONS,
    backtest_table,
    brief_backtest,
    expect_of_last,
    is_rounded,
    judge_run,
    not_judged,
)
from hubextrap.statistics.hindsight import Foresight, in_hindsight
from hubextrap.timing import clock_of_scan
from hubextrap.watching import Made, Ran, Taken
from hubextrap.watching.history import Score, as_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hubextrap.api.predicting import PredictResult
    from hubextrap.api.preparing import MergeOptions
    from hubextrap.clocks import Clock, ClockChoice
    from hubextrap.progress import Progress
    from hubextrap.recipe import WatchSection, WatchTarget
    from hubextrap.regrounding.command import CommandRunner
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest, GramTable, RunVerdict
    from hubextrap.statistics.hindsight import Hindsight
    from hubextrap.trajectory import Trajectory
    from hubextrap.watching import History

PREDICTIONS = "predictions"
"""The folder of predictions in a watched run's own."""
COMMAND_LOG = "command.log"
"""What the recipe's command printed when it was last run."""


@dataclass(frozen=True)
class Past:
    """What a scan says of a run as it was at each of its checkpoints; each backtest is made once."""

    scan: Scan
    clock: Clock
    _backtests: dict[int, Backtest] = field(default_factory=dict)

    @classmethod
    def of(cls, scan: Scan, choice: ClockChoice) -> Past:
        """
        Raises:
            ClockError: there is no such clock.
        """
        return cls(scan, clock_of_scan(choice, scan, SilentProgress()))

    @cached_property
    def table(self) -> GramTable:
        return replace(self.scan.gram_table, clock=self.clock)

    def table_at(self, step: int) -> GramTable:
        """What was there when ``step`` was the newest checkpoint."""
        return self.table.seen_at(self.scan.steps.index(step))

    def backtest_at(self, step: int) -> Backtest:
        """Every method on the past of that moment."""
        if step not in self._backtests:
            dtypes = self.scan.dtypes[: self.scan.steps.index(step) + 1]
            self._backtests[step] = backtest_table(self.table_at(step), dtypes=dtypes)
        return self._backtests[step]

    @property
    def backtest(self) -> Backtest:
        """With all that is there now."""
        return self.backtest_at(self.scan.steps[-1])

    def verdict_at(self, step: int) -> RunVerdict:
        """On the run as it was then."""
        found = self.backtest_at(step)
        return judge_run(found) if len(found.steps) > 2 else not_judged("", found.steps)

    def hindsight(self, history: History, step: int | None = None) -> Hindsight:
        """How what was said turned out; as it was known at ``step``, where one is given."""
        if step is None:
            return in_hindsight(history.said, self.backtest, history.replaced)
        said = [one for one in history.said if one.last_step <= step]
        return in_hindsight(said, self.backtest_at(step), history.replaced)


def foresee(past: Past, step: int) -> tuple[Foresight, str]:
    """By what method and how far the past lets predict from a checkpoint; and why not, where it does not."""
    table, dtypes = past.table_at(step), past.scan.dtypes
    times, count = table.times, len(table.steps)
    choice = choose_method(past.backtest_at(step) if count > 2 else None, table.steps, times)
    nothing = Foresight(step, choice.name, None)
    if count < 3:
        return nothing, not_judged("", table.steps).headline
    rounded = is_rounded(table, dtypes[:count])
    verdict = judge_run(brief_backtest([choice.rule], table, rounded, HORIZONS[-1]), method=choice.name)
    if verdict.reach is None:
        return nothing, f"the past supports no later step yet ({verdict.headline})"
    if verdict.reach_step is None:
        return nothing, f"no step lies as far ahead as the past supports: {verdict.reach_in_words}"
    target = max(verdict.reach_step, step + 1)
    expected = expect_of_last([choice.rule], table, table.clock.time_of(target), rounded)
    return Foresight(step, choice.name, target, expected.relative_error, expected.stderr), ""


def aimed_at(asked: WatchTarget, table: GramTable) -> tuple[int | None, str]:
    """The step to predict, None for the farthest that the past supports; and why none can be."""
    times, last = table.times, table.steps[-1]

    def step_at(horizon: float) -> float | None:
        return table.clock.step_at(times[-1] + horizon * (times[-1] - times[0]))

    step = asked.to if asked.ahead is None else last + asked.ahead
    if asked.horizon is not None:
        found = step_at(asked.horizon)
        if found is None:
            return None, f"the learning rate never gets as far ahead as a horizon of {asked.horizon:g}"
        step = max(round(found), last + 1)
    if step is None:
        return None, ""
    if step <= last:
        return None, f"step {step} is reached"
    horizon = horizon_of(times, table.clock.time_of(step))
    if horizon is not None and horizon > (farthest := farthest_horizon(times)):
        there = step_at(farthest)
        up_to = "" if there is None else f", up to step {int(there)} as yet"
        return None, f"step {step} lies beyond all that the past can rehearse{up_to}"
    return step, ""


@dataclass(frozen=True, slots=True)
class Taking:
    """What is done for each new checkpoint, and with what."""

    section: WatchSection
    folder: Path
    """The watched run's."""
    clock: ClockChoice
    settings: MergeOptions
    progress: Progress
    runner: CommandRunner

    def take(self, run: Trajectory, past: Past, number: int) -> Taken:
        """Do what is due for the last checkpoint of ``run``.

        Whoever does it twice, as after a kill, changes nothing.

        Args:
            past: of a scan of these checkpoints, and maybe of later ones.
            number: of the checkpoints that were taken before it.

        Raises:
            HubExtrapError: see `predict`.
        """
        step = run.steps[-1]
        if number % self.section.every:
            return Taken(step=step, number=number, said=None)
        if len(run.steps) < 2:
            return Taken(step=step, number=number, said=None, reason="a prediction needs two checkpoints")
        said, reason = foresee(past, step)
        if self.section.predict is None:
            return Taken(step=step, number=number, said=said)
        to: int | None = None
        if len(run.steps) > 2 and self.section.predict.model_fields_set:
            to, reason = aimed_at(self.section.predict, past.table_at(step))
        if reason:
            return Taken(step=step, number=number, said=said, reason=reason)
        answer = self._predict(run, past, to)
        return Taken(step=step, number=number, said=_said(answer, step), made=self._made(answer, step))

    def _predict(self, run: Trajectory, past: Past, to: int | None) -> PredictResult:
        section, step = self.section, run.steps[-1]
        place = self.folder / PREDICTIONS / f"from_{step}"
        if place.exists() and not may_be_finished(place):  # whole, and its record was not written
            shutil.rmtree(place)
        push = section.push
        target = None
        if push is not None:
            revision = filled(push.revision, {"last_step": step, "target_step": "{target_step}"})
            target = PushTarget(push.repo, revision, push.private, push.create_pr, push.commit_message)
        more: dict[str, Any] = {}
        if (asked := section.evaluate) is not None:
            more = {
                "evaluate": asked.tasks,
                "include_path": asked.include_path or (),
                "limit": asked.limit,
                "batch_size": asked.batch_size,
                "output": place.with_suffix(".scores.json"),
            }
        place.parent.mkdir(exist_ok=True)
        self.progress.say(f"step {step}: predicting from it")
        return predict(
            run,
            to,
            out=None if target is not None else place,
            push=target,
            settings=self.settings,
            progress=self.progress,
            walk=section.walk,
            clock=self.clock,
            scan=past.scan,
            write_recipe=place.with_suffix(".yaml"),
            **more,
        )

    def _made(self, answer: PredictResult, step: int) -> Made:
        prediction = answer.prediction
        assert prediction is not None
        target, pushed, folder = prediction.target, prediction.pushed, prediction.folder
        return Made(
            step=prediction.step,
            folder=None if folder is None else folder.relative_to(self.folder).as_posix(),
            repo=None if target is None else target.repo,
            revision=None if target is None else target.revision,
            commit=None if pushed is None else pushed.commit,
            scores=tuple(
                Score(task=one.task, value=one.value, last=one.last, outcome=one.outcome)
                for one in answer.verdict.scores
            ),
        )

    def run_command(self, taken: Taken, past: Past, history: History, places: Mapping[str, str]) -> Ran:
        """Run the recipe's command, with what happened on its standard input; its failure is told.

        Raises:
            OutputError: its log cannot be written.
        """
        section, step = self.section, taken.step
        assert section.command is not None
        happened = {
            **as_json(taken),
            **places,
            "verdict": past.verdict_at(step).as_dict(),
            "hindsight": past.hindsight(history, step).as_dict(),
        }
        log = self.folder / COMMAND_LOG
        log.unlink(missing_ok=True)
        line = command_line(section.command, section.shell, {})
        given = f"{json.dumps(happened)}\n".encode()
        code = self.runner.run_within(section.timeout, line, log, given)
        ended = f"no end within {section.timeout:g} s" if code is None else how_ended(code)
        if code != 0:
            printed = f"; what it printed is in {log}" if log.exists() else ""
            self.progress.warn(f"step {step}: the command: {ended}{printed}")
        return Ran(step=step, ended=ended)


def _said(answer: PredictResult, step: int) -> Foresight:
    """What a prediction said of itself."""
    assert answer.recipe is not None
    assert answer.prediction is not None
    target: int | None = answer.prediction.step
    judged = answer.verdict.target
    if answer.recipe.parameters.target is not None or answer.prediction.step <= step:
        target = None  # called by full-rate steps, or the last checkpoint itself
    if judged is None or target is None:
        return Foresight(step, answer.chosen, target)
    return Foresight(step, answer.chosen, target, judged.expected_error, judged.expected_error_stderr)
