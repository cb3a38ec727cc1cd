"""Weighted means over the last checkpoints: they predict no motion, and damp the noise of the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError
from hubextrap.methods.lines import sum_to_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def average(steps: Sequence[float], target_step: float, *, last: int | None = None) -> NDArray[np.float64]:
    """The mean of the last checkpoints, wherever the target is.

    Args:
        last: how many of them; all when None.

    Raises:
        MethodError: there are not as many.
    """
    count = len(steps) if last is None else last
    if not 1 <= count <= len(steps):
        raise MethodError(f"last {count}: give a count from 1 to {len(steps)}, the number of checkpoints")
    result = np.zeros(len(steps))
    result[-count:] = 1.0 / count
    return sum_to_one(result)


def ema(steps: Sequence[float], target_step: float, *, decay: float = 0.9) -> NDArray[np.float64]:
    """The exponential moving average over the checkpoints in order, wherever the target is.

    It starts at the first checkpoint, and each later one moves it: mean ← decay·mean + (1 − decay)·W_k.

    Raises:
        MethodError: ``decay`` is not from 0 (the last checkpoint) to below 1.
    """
    if not 0.0 <= decay < 1.0:
        raise MethodError(f"decay {decay}: give a number from 0 (the last checkpoint alone) to below 1")
    powers = np.ones(len(steps))
    for k in range(len(steps) - 2, -1, -1):  # np.power differs with the processor in the last digit
        powers[k] = decay * powers[k + 1]
    result = (1.0 - decay) * powers
    result[0] = powers[0]
    return sum_to_one(result)
