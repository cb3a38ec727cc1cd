"""Train a little, jump far, and know when not to: what the trainer callback and the command loop share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of
from hubextrap.regrounding.guard import (
    MAX_ERROR,
    Judgement,
    ProbeVerdict,
    judge_jump,
    judge_own_answers,
    judge_probe,
)
from hubextrap.regrounding.history import HISTORY_NAME, Decision, read_history
from hubextrap.regrounding.jumps import (
    RULES,
    WINDOWS_KEPT,
    Clocks,
    JumpRule,
    Timing,
    Window,
    jump_coefficients,
    snapshot_steps,
    timing_of,
)
from hubextrap.regrounding.rates import Rates

if TYPE_CHECKING:
    from hubextrap.regrounding.callback import ExtrapolationCallback

__all__ = [
    "HISTORY_NAME",
    "MAX_ERROR",
    "RULES",
    "WINDOWS_KEPT",
    "Clocks",
    "Decision",
    "ExtrapolationCallback",
    "Judgement",
    "JumpRule",
    "ProbeVerdict",
    "Rates",
    "Timing",
    "Window",
    "judge_jump",
    "judge_own_answers",
    "judge_probe",
    "jump_coefficients",
    "read_history",
    "snapshot_steps",
    "timing_of",
]

# torch and transformers: only who trains pays for them
__getattr__ = names_of(__name__)
