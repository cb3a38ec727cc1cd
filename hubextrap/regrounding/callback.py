"""`ExtrapolationCallback`: periodic re-grounding inside transformers.Trainer and the trainers of TRL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from hubextrap.extras import require

require("train", "ExtrapolationCallback")

import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback

from hubextrap.errors import MethodError
from hubextrap.regrounding.answerer import Answerer
from hubextrap.regrounding.ending import GramOfSnapshots, after_jump, along, decide, timed
from hubextrap.regrounding.guard import MAX_ERROR, Values, judge_after
from hubextrap.regrounding.history import HISTORY_NAME, Decision, append_decision, rewrite_history
from hubextrap.regrounding.jumps import (
    WINDOWS_KEPT,
    Clocks,
    JumpRule,
    Timing,
    Window,
    WindowClock,
    check_rule,
    snapshot_steps,
    timing_of,
)
from hubextrap.regrounding.parameters import (
    forget_moments,
    from_rank_zero,
    gram_matrices,
    jump_to,
    local_tensors,
    reset_moments,
    reshard,
    restore,
    shares,
    world_size,
)
from hubextrap.regrounding.peft_layers import factor_pairs
from hubextrap.regrounding.products import moving, with_cut
from hubextrap.regrounding.rates import Rates, rate_of, rate_of_update
from hubextrap.regrounding.resuming import Saved, load_checkpoint, resumed_folder, save_checkpoint
from hubextrap.regrounding.ring import Layout, SnapshotRing
from hubextrap.regrounding.training import calling_trainer, log, refuse_what_cannot_be_served, report

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

Probe = Callable[[nn.Module], float]


class ExtrapolationCallback(TrainerCallback):
    """After every m optimizer steps, jump n steps ahead along the line of the weights, in place.

    Works with transformers.Trainer and TRL's trainers, on one process, under DDP, FSDP2 and FSDP1 (each rank
    moves its own shard), on all trainable parameters. The jump is made in `on_step_end`: after the
    optimizer's step, before the trainer's own evaluation and checkpoint of that step, and before the next
    completions are generated (TRL hands the weights to vLLM again at the first generation of every optimizer
    step).

    Of peft's LoRA (on one process, or under DDP) the products B·A jump, not A and B by themselves.
    Σ c_k·B_k·A_k is cut to the adapter's rank; the share of its energy that is lost is
    `Decision.lost_energy`, and a warning above 1%. The optimizer begins anew with A and B after a jump,
    whatever ``moments`` says.

    Parameters are moved in float32 and rounded once to their own dtype. With mixed precision (``bf16=True``)
    the parameters are the float32 weights that the optimizer steps, so nothing is lost; a model that is
    itself in bfloat16 gets its jump rounded to bfloat16, as it gets every step.

    Every decision is in ``reground_history.jsonl`` in the trainer's output folder, in the log history and,
    as numbers named ``reground/…``, in every logger that the trainer reports to. The snapshots go with every
    checkpoint (in its folder ``reground``), and a resumed run goes on as if it had never stopped. At the last
    step of training no jump is made: what a run ends with was trained.

    Args:
        m: optimizer steps in a window.
        n: steps that a jump stands for.
        rule: ``two_point``, ``anchored`` or ``calibrated``; see `hubextrap.regrounding.RULES`.
        windows: how many windows the rule and its backtest see; `regrounding.WINDOWS_KEPT` when None.
        max_error: the guard: no jump when the last windows' backtest, or the error to expect by them, is
            above it (1 is standing still), when n is beyond anything that they can speak for, and after the
            first window, which nothing can be said of. None turns it off.
        probe: model → score on held-out prompts, higher is better: called before and after every jump, in
            eval mode without gradients, on every rank; rank 0's value counts. Its harm undoes the jump and
            halves n, its gain doubles n up to ``max_n``; the guard then lets the first window jump.
        own_answers: prompts, as text: before every jump the model answers them greedily, and after it these
            answers are scored. Fallen by half a nat an answer or more, they undo the jump and halve n, as
            the probe's harm does, and beside it; the guard then lets the first window jump. Every rank takes
            part, with the trainer's ``processing_class``.
        max_tokens: of one answer, at most; 512 when None.
        apply_chat_template: put each prompt into the tokenizer's chat template, as the user's message.
        probe_margin: what the probe's score has to change by to count; needed with a probe: about twice the
            standard error of its score.
        max_n: the longest that n may grow to; n itself when None.
        clock: what windows and jumps are measured by. ``learning_rate``: by the rates of the updates, so that
            a window is as long as they add up to, and a jump of n steps stands for n steps at the rate of the
            moment; none is made where that is 0. ``steps``: by their number. ``auto``: by the rates, where
            they really changed within the windows at hand.
        moments: what becomes of the optimizer's moments at a jump. ``keep``: they describe gradients, which a
            jump along the line they came from changes little, and Adam's first moment is forgotten within
            some ten steps anyway. ``reset``: zero, with the step count; Adam's first steps after it move
            every weight by the whole learning rate, in whatever direction its next noisy gradient has.
        snapshots: ``cpu`` keeps them in memory, ``disk`` as safetensors in the output folder.
        memory: bytes that the snapshots of a rank may take, in memory or on disk: 2·``windows`` copies of its
            trainable parameters.

    Raises:
        MethodError: an argument makes no sense; at the start of training, DeepSpeed, a probe or own answers
            under FSDP1, own answers without a tokenizer, an optimizer without rates where they are the clock,
            an m that falls between generating and training, or an adapter whose products cannot jump.
        OutputError: the snapshots do not fit, at the start of training; or a file cannot be written.
        NonFinite: training left NaN or infinity, or the jump overflowed a 16-bit dtype.
        CorruptFile, CheckpointMismatch: the checkpoint to resume from holds no usable snapshots.
    """

    def __init__(
        self,
        m: int,
        n: int,
        *,
        rule: JumpRule = "two_point",
        windows: int | None = None,
        max_error: float | None = MAX_ERROR,
        probe: Probe | None = None,
        probe_margin: float | None = None,
        max_n: int | None = None,
        own_answers: Sequence[str] | None = None,
        max_tokens: int | None = None,
        apply_chat_template: bool = False,
        clock: WindowClock = "auto",
        moments: Literal["keep", "reset"] = "keep",
        snapshots: Literal["cpu", "disk"] = "cpu",
        memory: int = 8 * 2**30,
    ) -> None:
        check_rule(rule)
        windows = WINDOWS_KEPT[rule] if windows is None else windows
        _refuse(m < 1, f"m {m}: a window has at least one optimizer step")
        _refuse(n < 1, f"n {n}: a jump stands for at least one step")
        longest = n if max_n is None else max_n
        _refuse(longest < n, f"max_n {longest} is below n {n}: it is the longest that n may grow to")
        _refuse(windows < 1, f"windows {windows}: a jump needs at least one")
        _refuse(
            windows < 2 and max_error is not None,
            f"windows {windows}: the guard backtests a window on the one before it; give 2 or more, or "
            "max_error=None",
        )
        _refuse(
            max_error is not None and not max_error > 0.0,
            f"max_error {max_error}: give a number above 0 (1 is standing still), or None for no guard",
        )
        _refuse(
            (probe is None) != (probe_margin is None)
            or (probe_margin is not None and not probe_margin >= 0.0),
            f"probe_margin {probe_margin}: give a probe and its margin together; the margin is 0 or "
            "more, about twice the standard error of the probe's score",
        )
        _refuse(
            probe is None and max_n is not None,
            f"max_n {max_n} has no effect without a probe: only a probe's gain makes n grow",
        )
        _refuse(
            own_answers is None and (max_tokens is not None or apply_chat_template),
            "max_tokens and apply_chat_template have no effect without own_answers",
        )
        _refuse(
            own_answers is not None
            and (
                isinstance(own_answers, str)
                or not own_answers
                or not all(isinstance(prompt, str) and prompt for prompt in own_answers)
            ),
            "own_answers: give a list of prompts, each of them non-empty text",
        )
        _refuse(
            max_tokens is not None and max_tokens < 1,
            f"max_tokens {max_tokens}: an answer has at least one token",
        )
        _refuse(clock not in get_args(WindowClock), f"clock {clock!r}: choose auto, steps or learning_rate")
        _refuse(moments not in ("keep", "reset"), f"moments {moments!r}: choose keep or reset")
        _refuse(snapshots not in ("cpu", "disk"), f"snapshots {snapshots!r}: choose cpu or disk")
        self.m, self.n, self.rule, self.windows, self.max_error = m, n, rule, windows, max_error
        self.probe, self.probe_margin, self.moments = probe, probe_margin, moments
        self.max_n, self.snapshots, self.memory, self.clock = longest, snapshots, memory, clock
        self.own_answers = None if own_answers is None else tuple(own_answers)
        self.max_tokens, self.apply_chat_template = max_tokens, apply_chat_template
        self.decisions: list[Decision] = []
        """What was decided so far; the same as in the history's file."""

    @property
    def clocks(self) -> Clocks:
        """Steps taken and steps represented."""
        return self._at.clocks

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._trainer: Trainer | None
        self._trainer, resumed_from = calling_trainer()
        refuse_what_cannot_be_served(self._trainer, model, self.m, self._is_asked)
        _refuse(
            self.clock == "learning_rate" and optimizer is not None and rate_of(optimizer) is None,
            "clock 'learning_rate': the optimizer has no learning rates of its own; choose steps",
        )
        self._answerer = None
        if self.own_answers is not None:
            self._answerer = Answerer(
                processing_class, self.own_answers, self.max_tokens, self.apply_chat_template
            )
        tensors = local_tensors(model)
        _refuse(not tensors, "no parameter of the model is trainable: there is nothing to extrapolate")
        self._pairs = factor_pairs(model)
        self._shares = shares(model)
        self._history = Path(str(args.output_dir)) / HISTORY_NAME
        self._ring = self._new_ring(args, tensors)
        began = Clocks(state.global_step)
        self._at = Saved(began, began.represented_steps, self.n, (), Rates(), Rates())
        self._made: float | None = None
        self.decisions = []
        folder = resumed_folder(args, state, resumed_from)
        if folder is None:
            self._ring.put(self._at.start, tensors)
        else:
            self._at, self.decisions = load_checkpoint(
                folder, self._settings(), self._ring, self._is_sharded()
            )
        if state.is_world_process_zero:
            rewrite_history(self._history, self.decisions)
        if folder is None:
            said = f"windows of {self.m} steps, jumps of {self.n}, rule {self.rule}"
            values: dict[str, float] = {"rl_steps": began.rl_steps, "represented_steps": self._at.start}
            log(self._trainer, state, control, values, said)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        # before the schedule's own step, after which the optimizer has the next update's rate
        self._made = rate_of_update(optimizer)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        made, self._made = self._made, None
        self._at = self._at.trained(rate_of(optimizer) if made is None else made)
        if self.clocks.represented_steps - self._at.start == self.m:
            decision = self._end_window(model, optimizer, last=control.should_training_stop)
            self.decisions.append(decision)
            if state.is_world_process_zero:
                append_decision(self._history, decision)
            report(self._trainer, state, control, decision)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.save_only_model:  # nothing can be resumed from it
            return
        save_checkpoint(
            Path(str(args.output_dir)) / f"checkpoint-{state.global_step}",
            self._at,
            self.decisions,
            self._settings(),
            self._ring,
            self._is_sharded(),
            args.should_save,
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ring.remove()
        self._trainer = None

    def _end_window(self, model: nn.Module, optimizer: Any, last: bool) -> Decision:
        here = self.clocks.represented_steps
        tensors = local_tensors(model)
        self._ring.put(here, tensors)
        self._at, rate, timing = from_rank_zero(lambda: self._timed(rate_of(optimizer)))
        layouts, steps = self._ring.layouts, snapshot_steps(timing.windows)
        found = GramOfSnapshots(
            tuple(name for name, _ in moving(layouts, self._pairs)),
            gram_matrices(self._ring, steps, self._shares, tensors, self._pairs),
            {layout.dtype for layout in layouts.values()},
        )
        decision = from_rank_zero(
            lambda: decide(
                self.clocks,
                timing,
                self._at.n,
                self.rule,
                found,
                max_error=self.max_error,
                probed=self._is_asked,
                last=last,
            )
        )
        if decision.action == "jumped":
            decision = self._jump(model, decision, tensors)
        passed = along(self._at.passed, rate, decision)
        self._begin_window(passed, decision.represented_steps, tensors)
        if decision.action == "jumped":
            if self.moments == "reset":
                reset_moments(optimizer)
            forget_moments(optimizer, model, self._pairs)
        return timed(decision, passed)

    def _timed(self, rate: float | None) -> tuple[Saved, float | None, Timing]:
        """Rank 0's rates, the next update's, and what they come to with the window that ends here."""
        at, here = self._at, self.clocks.represented_steps
        windows = (*at.windows, Window(at.start, here, at.rates))
        peak = 0.0 if at.passed is None else at.passed.largest
        return replace(at, windows=windows), rate, timing_of(windows, at.n, self.clock, rate, peak)

    def _jump(self, model: nn.Module, decision: Decision, tensors: dict[str, torch.Tensor]) -> Decision:
        """Move the weights, and back again where the probe says so."""
        assert decision.coefficients is not None
        steps, n = decision.snapshot_steps, decision.n_used
        answers = None if self._answerer is None else self._answerer.draw(model)
        before = Values(self._probed(model), self._scored(model, answers))
        cut = jump_to(self._ring, steps, decision.coefficients, tensors, self._pairs)
        decision = with_cut(decision, cut)
        reshard(model)
        after = Values(self._probed(model), self._scored(model, answers))
        verdict = judge_after(n, before, after, margin=self.probe_margin, longest=self.max_n)
        if verdict is None:
            return decision
        self._at = replace(self._at, n=verdict.n)
        if not verdict.keep:
            restore(self._ring, steps[-1], tensors)
            reshard(model)
        return after_jump(decision, verdict, before, after)

    @property
    def _is_asked(self) -> bool:
        """Whether something judges a jump after it was made."""
        return self.probe is not None or self.own_answers is not None

    def _scored(self, model: nn.Module, answers: Any) -> float | None:
        if self._answerer is None:
            return None
        value = self._answerer.score(model, answers)
        return from_rank_zero(lambda: value)

    def _begin_window(self, passed: Rates | None, start: int, tensors: dict[str, torch.Tensor]) -> None:
        windows = self._at.windows
        kept = windows[max(0, len(windows) - self.windows + 1) :]
        clocks = self.clocks.jumped(start - self.clocks.represented_steps)
        at = replace(self._at, clocks=clocks, start=start, windows=kept)
        self._at = replace(at, rates=Rates(), passed=passed)
        self._ring.keep_only(self._at.snapshot_steps)
        if start not in self._ring.steps:
            self._ring.put(start, tensors)

    def _probed(self, model: nn.Module) -> float | None:
        if self.probe is None:
            return None
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                value = float(self.probe(model))
        finally:
            model.train(training)
            reshard(model)
        return from_rank_zero(lambda: value)

    def _new_ring(self, args: TrainingArguments, tensors: dict[str, torch.Tensor]) -> SnapshotRing:
        folder = Path(str(args.output_dir)) / "reground_ring" / f"rank-{args.process_index}"
        layouts = {name: Layout.of(tensor) for name, tensor in tensors.items()}
        ring = SnapshotRing(layouts, folder if self.snapshots == "disk" else None)
        ring.check_room(self.windows, self.memory, Path(str(args.output_dir)))
        return ring

    def _settings(self) -> dict[str, object]:
        """What has to be the same in a resumed run; n is where adaptation has taken it."""
        keys = ("m", "rule", "windows", "n", "max_n", "clock")
        return {key: getattr(self, key) for key in keys}

    def _is_sharded(self) -> bool:
        return any(share * world_size() > 1.0 for share in self._shares.values())


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise MethodError(message)
