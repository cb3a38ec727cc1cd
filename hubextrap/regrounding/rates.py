"""The learning rates of a row of updates: all that a re-grounded run has to know of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
REALLY = 1e-6
"""Share of the largest rate by which another differs where the rate really changed."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How many updates there were, and at which rates. Their order does not count."""

    steps: Annotated[int, Field(ge=0)] = 0
    total: Rate = 0.0
    least: Rate = 0.0
    largest: Rate = 0.0

    def plus(self, rate: float, steps: int = 1) -> Rates:
        """With so many more updates at one rate."""
        return self.joined(Rates(steps, steps * rate, rate, rate))

    def joined(self, other: Rates) -> Rates:
        """These updates and others."""
        if not (self.steps and other.steps):
            return self if self.steps else other
        least, largest = min(self.least, other.least), max(self.largest, other.largest)
        return Rates(self.steps + other.steps, self.total + other.total, least, largest)

    @property
    def changed(self) -> bool:
        """Whether the rate really did."""
        return differ(self.least, self.largest)

    def full_rate_steps(self, peak: float) -> float:
        """Σ of the rates, divided by ``peak``; for a constant rate, the steps to the last bit."""
        if self.changed:
            return self.total / peak
        return self.steps * (self.largest / peak) if self.largest > 0.0 else 0.0

    @property
    def in_full_rate_steps(self) -> float:
        """The same by its own largest rate."""
        return self.full_rate_steps(self.largest)


def differ(least: float, largest: float) -> bool:
    """Whether rates from ``least`` to ``largest`` are more than one constant, and its rounding."""
    return largest - least > REALLY * largest


def rate_of(optimizer: Any) -> float | None:
    """The rate that an optimizer has now: the largest of its groups', so that a frozen one does not count.

    Groups whose rates keep their proportions have one clock, whichever of them is asked. None where the
    optimizer has no rates: there is none, or it makes up its own.
    """
    rates = [group.get("lr") for group in getattr(optimizer, "param_groups", ())]
    known = [float(rate) for rate in rates if rate is not None]
    if not known or len(known) < len(rates) or not all(0.0 <= rate < math.inf for rate in known):
        return None
    return max(known)


def rate_of_update(optimizer: Any) -> float | None:
    """The rate of the update that an optimizer has just made; 0 where it skipped it for an overflow."""
    rate = rate_of(optimizer)
    return 0.0 if rate is not None and getattr(optimizer, "step_was_skipped", False) else rate
