"""How many weights of each tensor a sample may take, and how that is asked for."""

from __future__ import annotations

from typing import Literal

DEFAULT_SAMPLE = 4096
"""Weights per tensor, where a sample is asked for and nothing says how large."""
LEAST_SAMPLE, MOST_SAMPLE = 64, 2**24
"""Below, a group of weights says nothing; above, all weights are as quickly read."""
SampleChoice = int | Literal["auto", "exact"]
"""Weights per tensor; all of them; or whichever of the two fits where the checkpoints lie."""


def sample_problem(size: int) -> str | None:
    """Why a sample cannot have so many weights per tensor; None where it can."""
    if LEAST_SAMPLE <= size <= MOST_SAMPLE:
        return None
    return f"must be from {LEAST_SAMPLE} to {MOST_SAMPLE:,} weights per tensor, not {size:,}"
