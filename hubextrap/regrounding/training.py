"""What the callback has to know of the trainer that calls it: who it is, how it logs, what cannot work."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.recompress import MOST_LOST
from hubextrap.errors import MethodError
from hubextrap.regrounding.history import Decision
from hubextrap.regrounding.parameters import fsdp1_strategies

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

PREFIX = "reground/"
"""Of every key that is logged."""
_LOGGED = (
    *("rl_steps", "represented_steps", "n_wanted", "n_used"),
    *("backtest_error", "expected_relative_error", "probe_before", "probe_after"),
    *("full_rate_steps", "own_answers_before", "own_answers_after", "lost_energy"),
)
logger = logging.getLogger("hubextrap.regrounding")


def calling_trainer() -> tuple[Trainer | None, Path | None]:
    """The trainer whose `on_train_begin` is running, and the checkpoint that it resumes from.

    Trainers hand a callback neither, and a callback made before its trainer cannot be given it. So both are
    read off the training loop that is on the stack. (None, None) in a loop of one's own.
    """
    from transformers import Trainer  # needs accelerate, which only the extra `train` brings

    frame = sys._getframe(1)
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if frame.f_code.co_name == "_inner_training_loop" and isinstance(trainer, Trainer):
            resumed = frame.f_locals.get("resume_from_checkpoint")
            return trainer, None if resumed is None else Path(resumed)
        frame = frame.f_back  # type: ignore[assignment]
    return None, None


def log(
    trainer: Trainer | None, state: TrainerState, control: TrainerControl, values: dict[str, float], said: str
) -> None:
    """Send numbers to the trainer's own loggers and its log history; the words go to the history alone.

    `Trainer.log` itself, not an override: GRPOTrainer's would hand out, and forget, the metrics that it is
    still gathering for its own next line.
    """
    values = {PREFIX + key: value for key, value in values.items()}
    if trainer is None:
        state.log_history.append({**values, "step": state.global_step})
    else:
        due = control.should_log  # logging sets it back, and the trainer's own line would be lost
        from transformers import Trainer

        Trainer.log(trainer, values)
        control.should_log = due
    state.log_history[-1][PREFIX + "reason"] = said  # type: ignore[assignment]


def report(trainer: Trainer | None, state: TrainerState, control: TrainerControl, decision: Decision) -> None:
    """Log a decision, and warn of what is not as one would want it."""
    found = {key: getattr(decision, key) for key in _LOGGED}
    said = f"{decision.action}: {decision.reason}"
    log(trainer, state, control, {key: value for key, value in found.items() if value is not None}, said)
    if state.is_world_process_zero:
        as_wanted = decision.action == "jumped" and (decision.lost_energy or 0.0) <= MOST_LOST
        logger.log(logging.INFO if as_wanted else logging.WARNING, "step %d: %s", decision.rl_steps, said)


def refuse_what_cannot_be_served(trainer: Trainer | None, model: Any, m: int, probed: bool) -> None:
    """Say before training what would go wrong in it.

    Raises:
        MethodError: DeepSpeed, a probe under FSDP1, or jumps between generating completions and training on
            them.
    """
    if trainer is not None and trainer.is_deepspeed_enabled:
        raise MethodError(
            "DeepSpeed keeps the weights that it trains in its own optimizer, and would undo a jump at the "
            "next step; use FSDP2 (fsdp_version: 2) or DDP"
        )
    if probed and fsdp1_strategies(model):
        raise MethodError(
            "a probe or own answers under FSDP1 leave gathered weights behind, which a jump does "
            "not move; use FSDP2 (fsdp_version: 2), or neither of them"
        )
    args: Any = None if trainer is None else trainer.args
    if getattr(args, "steps_per_generation", None) and hasattr(args, "num_iterations"):
        batches = args.steps_per_generation * args.num_iterations
        steps, rest = divmod(batches, args.gradient_accumulation_steps)
        every = batches if rest else max(1, steps)
        if m % every:
            raise MethodError(
                f"m = {m}: this trainer generates completions for "
                f"{batches / args.gradient_accumulation_steps:g} optimizer steps at a time "
                "(steps_per_generation · num_iterations / gradient_accumulation_steps), and a jump "
                "in between would make it train on completions of the policy before the jump; "
                f"choose a multiple of {every}"
            )
