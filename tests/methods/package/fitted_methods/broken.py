"""A fitted method that breaks one promise of methods, as told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def broken(
    steps: Sequence[int],
    target_step: float,
    gram: NDArray[np.float64],
    *,
    how: Literal["one tensor", "nan", "sum", "raises", "writes", "early"],
) -> NDArray[np.float64]:
    result = np.zeros(gram.shape[:-1])
    if how == "one tensor":
        return np.zeros(len(steps))
    if how == "nan":
        result[..., 0] = np.nan
    if how == "sum":
        result[..., -1] = 1e-6
    if how == "raises" or (how == "early" and len(steps) < 4):
        raise ZeroDivisionError("no way")
    if how == "writes":
        gram[...] = 0.0
    return result
