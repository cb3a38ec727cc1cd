"""Runs as transformers' Trainer would log them, and the time that they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hubextrap.clocks import RateHistory


def transformers_rates(name: str, warmup: int, total: int, count: int, **named: Any) -> list[float]:
    """λ(0) … of transformers.get_scheduler; ``min_lr_rate`` is a polynomial's lr_end too."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    if name == "polynomial":
        named["lr_end"] = named.pop("min_lr_rate") * 0.5
    scheduler = get_scheduler(name, optimizer, warmup, total, named)
    return [float(scheduler.lr_lambdas[0](step)) for step in range(count)]


def true_times(rates: Sequence[float]) -> np.ndarray:
    """At each step, the sum of the rates of the updates up to it, over their peak."""
    return np.concatenate([[0.0], np.cumsum(rates) / max(rates)])


def logged(
    rates: Sequence[float],
    until: int,
    every: int,
    *,
    newer: bool = False,
    digits: int | None = None,
    peak: float = 3e-6,
    max_steps: int | None = None,
    first: bool = False,
) -> RateHistory:
    """What log_history has up to a step: of each the rate of the next update, or (newer) of the last.

    ``first`` is logging_first_step.
    """
    steps = [step for step in range(1, until + 1) if step % every == 0 or (first and step == 1)]
    shown = [peak * rates[step - newer] for step in steps]
    if digits is not None:
        shown = [rate and round(rate, digits - 1 - math.floor(math.log10(rate))) for rate in shown]
    return RateHistory(tuple(steps), tuple(shown), max_steps, "trainer_state.json")
