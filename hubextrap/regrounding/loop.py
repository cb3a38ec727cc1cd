"""The loop of `hubextrap reground`: a trainer's command and a jump in turn, journalled phase by phase.

A run lies in one folder: ``state.json``, ``reground_history.jsonl``, and ``round-001``, ``round-002`` … with
the trainer's ``output``, its log and what was ``extrapolated`` from it. A phase either is in the state or
leaves nothing that counts, so that a run that was stopped anywhere goes on with the phase it was in.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hubextrap.durable.atomic import writing
from hubextrap.errors import CheckpointError, OutputError
from hubextrap.foreign_text import own_lines
from hubextrap.recipe.commands import command_line
from hubextrap.regrounding.checkpoint import (
    CheckedModel,
    check_model,
    check_unchanged,
    complete_tokenizer,
    find_checkpoint,
)
from hubextrap.regrounding.command import CommandRunner, printed_number
from hubextrap.regrounding.ending import (
    GramOfSnapshots,
    after_jump,
    along,
    decide,
    limit_reached,
    timed,
    why_ended,
)
from hubextrap.regrounding.guard import Values, judge_after
from hubextrap.regrounding.history import HISTORY_NAME, Decision, rewrite_history
from hubextrap.regrounding.jumps import WINDOWS_KEPT, Window, snapshot_steps, timing_of
from hubextrap.regrounding.rates import Rates
from hubextrap.regrounding.round_rates import rates_of_round, window_clock
from hubextrap.regrounding.state import Phase, RunState, save_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubextrap.progress import Progress
    from hubextrap.recipe import RegroundRecipe, RegroundSection

ROOM = 2
"""Weights of the model that a round is expected to write, until one has shown what it takes."""


class Engine(Protocol):
    """What the loop needs of the rooms above it."""

    def scan(self, snapshots: Mapping[int, Path]) -> GramOfSnapshots:
        """The inner products of the snapshots, by step."""

    def extrapolate(
        self, snapshots: Mapping[int, Path], decision: Decision, target_step: int, out: Path
    ) -> None:
        """Write Σ c_k·W_k to ``out``, which appears whole; a stopped one goes on where it was."""

    def own_answers(self, before: Path, after: Path) -> tuple[float, float]:
        """How likely each of two models makes the first one's greedy answers: nats per answer."""

    def push(self, model: Path, weights: Mapping[str, str], kind: str, rl_steps: int, step: int) -> None:
        """Make ``model`` a branch on the Hub; what is there already is not committed again."""


@dataclass
class Loop:
    """One run in one folder."""

    recipe: RegroundRecipe
    out: Path
    state: RunState
    engine: Engine
    runner: CommandRunner
    progress: Progress
    _trained_here: bool = False

    @property
    def _section(self) -> RegroundSection:
        return self.recipe.reground

    def run(self) -> RunState:
        """Go on to the end.

        Raises:
            CommandFailed: the trainer or the probe did not end well.
            CheckpointError: what the trainer left behind cannot be used.
            OutputError: the disk did not take something, or has no room for another round.
            HubExtrapError: see the engine. Whatever it is, the same call goes on once it is mended.
        """
        rewrite_history(self.out / HISTORY_NAME, self.state.decisions)
        if self._section.keep == "last":
            self._drop()
        if self.state.is_done("checked"):
            self._recheck()
        while self.state.finished is None:
            reason = why_ended(self._section, self.state.decisions, self.state.clocks)
            if self.state.phase == "begun" and reason is not None:
                self._save(self.state.after("begun", finished=reason))
                self.progress.say(f"finished: {reason}")
                break
            self._round()
        return self.state

    def _round(self) -> None:
        phases: tuple[tuple[Phase, Callable[[], RunState]], ...] = (
            ("trained", self._train),
            ("checked", self._check),
            ("decided", self._decide),
            ("extrapolated", self._extrapolate),
            ("probed", self._probe),
            ("pushed", self._push),
        )
        for phase, work in phases:
            if not self.state.is_done(phase):
                self._save(work())
        self._next()

    def _train(self) -> RunState:
        state, section = self.state, self._section
        folder = self._folder(state.round)
        output = folder / "output"
        # Of an attempt that did not end well; nothing outside the round's own folder is touched.
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(folder / "extrapolated", ignore_errors=True)
        with writing(output, "check its permissions and the free space"):
            output.mkdir(parents=True)
        self._check_room()
        first, steps = state.clocks.rl_steps, section.window
        self.progress.say(f"round {state.round}: RL steps {first} to {first + steps}, from {state.model}")
        model = self.out / state.model
        values = {"model": model, "start_step": first, "steps": steps, "output": output}
        arguments = command_line(section.train, section.shell, values)
        self.runner.run(arguments, folder / "train.log", f"round {state.round}: the trainer")
        self._trained_here = True
        return state.after("trained")

    def _check(self) -> RunState:
        try:
            checked = self._checked()
        except CheckpointError as error:
            said = f"round {self.state.round}: {error}"
            if not self._trained_here:
                self.progress.say(own_lines(*f"{said}; the round is trained again".split("\n")))
                self._save(self._train())
                return self._check()
            remedy = (
                f"the trainer's output is in {self._folder(self.state.round) / 'train.log'}; fix "
                "the trainer, or `checkpoint` in the recipe, then run the same command again: it "
                "looks for the checkpoint again, and trains again if there is none"
            )
            lines = own_lines(*said.split("\n"), remedy)
            raise type(error)(lines, file=error.file, tensor=error.tensor, step=error.step) from error
        return self.state.after("checked", checkpoint=self._relative(checked.folder), weights=checked.weights)

    def _checked(self) -> CheckedModel:
        state, section = self.state, self._section
        output = self._folder(state.round) / "output"
        folder = find_checkpoint(output, section.checkpoint, state.clocks.rl_steps, section.window)
        with self.progress.stage("check", None) as stage:
            checked = check_model(folder, self.out / state.model, stage)
        complete_tokenizer(folder, self.out / state.model)
        return checked

    def _recheck(self) -> None:
        if not self._checkpoint().is_dir():
            state = self.state
            self.progress.say(
                f"round {state.round}: {self._checkpoint()} is gone, so the round is trained again"
            )
            n = state.n if state.decision is None else state.decision.n_wanted  # a probe may have changed it
            gone: dict[str, Any] = {"checkpoint": None, "decision": None, "rates": None, "rate": None}
            self._save(state.after("begun", n=n, weights={}, **gone))
            return
        with self.progress.stage("check", None) as stage:
            check_unchanged(self._checkpoint(), self.state.weights, stage)

    def _decide(self) -> RunState:
        state, section = self.state, self._section
        say = lambda text: self.progress.say(f"round {state.round}: {text}")  # noqa: E731
        first, steps = state.clocks.rl_steps, section.window
        rates, rate = rates_of_round(section.clock, self._checkpoint(), first, steps, say)
        passed = self._passed(rates)
        after = state.clocks.trained(steps)
        start = state.clocks.represented_steps
        timing = timing_of(
            (*state.windows, Window(start, start + steps, rates)),
            state.n,
            window_clock(section.clock),
            rate,
            0.0 if passed is None else passed.largest,
        )
        snapshots = self._snapshots()
        decision = decide(
            after,
            timing,
            state.n,
            section.rule,
            self.engine.scan({step: snapshots[step] for step in snapshot_steps(timing.windows)}),
            max_error=None if section.guard.max_error == "off" else section.guard.max_error,
            probed=self._is_asked,
            last=limit_reached(section, state.round, after) is not None,
        )
        decision = timed(decision, along(passed, rate, decision))
        return state.after("decided", decision=decision, rates=rates, rate=rate)

    def _passed(self, rates: Rates | None) -> Rates | None:
        """All up to the end of this round, the rates of its own updates given."""
        before = self.state.passed if self.state.clocks.rl_steps else Rates()
        return None if before is None or rates is None else before.joined(rates)

    @property
    def _is_asked(self) -> bool:
        """Whether something judges a jump after it was made."""
        guard = self._section.guard
        return guard.probe is not None or guard.prompts is not None

    def _extrapolate(self) -> RunState:
        decision = self._decision()
        if decision.action == "jumped":
            target = decision.represented_steps
            self.progress.say(
                f"round {self.state.round}: jump of {decision.n_used} to step {target}: {decision.reason}"
            )
            self.engine.extrapolate(self._snapshots(), decision, target, self._extrapolated())
        else:
            self.progress.say(f"round {self.state.round}: no jump: {decision.reason}")
        return self.state.after("extrapolated")

    def _probe(self) -> RunState:
        decision, guard, state = self._decision(), self._section.guard, self.state
        if decision.action != "jumped" or not self._is_asked:
            return state.after("probed")
        models = (self._checkpoint(), self._extrapolated())
        scores: tuple[float | None, float | None] = (None, None)
        likely: tuple[float | None, float | None] = (None, None)
        if guard.probe is not None:
            scores = self._score(models[0], "before"), self._score(models[1], "after")
        if guard.prompts is not None:
            likely = self.engine.own_answers(*models)
        before, after = (Values(*both) for both in zip(scores, likely, strict=True))
        longest = guard.longest_jump or self._section.jump
        verdict = judge_after(decision.n_used, before, after, margin=guard.margin, longest=longest)
        assert verdict is not None
        self.progress.say(
            f"round {state.round}: {'kept' if verdict.keep else 'taken back'}: {verdict.reason}"
        )
        decision = after_jump(decision, verdict, before, after)
        decision = timed(decision, along(self._passed(state.rates), state.rate, decision))
        return state.after("probed", decision=decision, n=verdict.n)

    def _score(self, model: Path, when: str) -> float:
        guard = self._section.guard
        assert guard.probe is not None
        log = self._folder(self.state.round) / f"probe-{when}.log"
        log.unlink(missing_ok=True)
        what = f"round {self.state.round}: the probe {when} the jump"
        self.runner.run(command_line(guard.probe, guard.shell, {"model": model}), log, what)
        return printed_number(log, what)

    def _push(self) -> RunState:
        if self.recipe.push is not None:
            decision, weights = self._decision(), self.state.weights
            rl_steps, step = decision.rl_steps, decision.represented_steps
            self.engine.push(self._checkpoint(), weights, "real", rl_steps, step - decision.n_used)
            if decision.action == "jumped":
                self.engine.push(self._extrapolated(), {}, "extrapolated", rl_steps, step)
        return self.state.after("pushed")

    def _next(self) -> None:
        """Hand the round's model to the next one, and let go of what no round needs any more."""
        state, decision, windows = self.state, self._decision(), self._windows()
        assert state.checkpoint is not None
        jumped = decision.action == "jumped"
        model = self._relative(self._extrapolated()) if jumped else state.checkpoint
        clocks = state.clocks.trained(self._section.window).jumped(decision.n_used)
        # The next window begins at this round's model, so one place is its own.
        windows = windows[-(WINDOWS_KEPT[self._section.rule] - 1) :]
        needed = snapshot_steps(windows)
        snapshots = {step: folder for step, folder in self._folders().items() if step in needed}
        after = state.after(
            "begun",
            round=state.round + 1,
            clocks=clocks,
            model=model,
            windows=windows,
            snapshots=snapshots | {clocks.represented_steps: model},
            checkpoint=None,
            weights={},
            rates=None,
            rate=None,
            passed=along(self._passed(state.rates), state.rate, decision),
            decision=None,
            decisions=(*state.decisions, decision),
        )
        self._save(after)
        rewrite_history(self.out / HISTORY_NAME, after.decisions)
        if self._section.keep == "last":
            self._drop()

    def _drop(self) -> None:
        needed = [self.out / folder for folder in self.state.snapshots.values()]
        for number in range(1, self.state.round):
            for part in ("output", "extrapolated"):
                place = self._folder(number) / part
                if not any(folder.is_relative_to(place) for folder in needed):
                    shutil.rmtree(place, ignore_errors=True)

    def _check_room(self) -> None:
        state = self.state
        before = self._folder(state.round - 1)
        taken = sum(path.stat().st_blocks * 512 for path in before.rglob("*") if path.is_file())
        needed, free = max(ROOM * state.size, taken), shutil.disk_usage(self.out).free
        if free < needed:
            like = "as the round before" if taken == needed else "twice the model: trained and extrapolated"
            raise OutputError(
                f"round {state.round}: {needed:,} bytes are needed in {self.out} ({like}), and "
                f"{free:,} are free; make room (keep: last removes old rounds' weights), then run "
                "the same command again",
                file=self.out,
            )

    def _save(self, state: RunState) -> None:
        save_state(self.out, state)
        self.state = state

    def _windows(self) -> tuple[Window, ...]:
        """Those at hand, this round's included."""
        start = self.state.clocks.represented_steps
        return (*self.state.windows, Window(start, start + self._section.window, self.state.rates))

    def _folders(self) -> dict[int, str]:
        """Every snapshot at hand, this round's checkpoint included."""
        assert self.state.checkpoint is not None
        return self.state.snapshots | {self._windows()[-1].end: self.state.checkpoint}

    def _snapshots(self) -> dict[int, Path]:
        return {step: self.out / folder for step, folder in sorted(self._folders().items())}

    def _decision(self) -> Decision:
        assert self.state.decision is not None
        return self.state.decision

    def _checkpoint(self) -> Path:
        assert self.state.checkpoint is not None
        return self.out / self.state.checkpoint

    def _extrapolated(self) -> Path:
        return self._folder(self.state.round) / "extrapolated"

    def _folder(self, number: int) -> Path:
        return self.out / f"round-{number:03}"

    def _relative(self, folder: Path) -> str:
        return folder.relative_to(self.out).as_posix()
