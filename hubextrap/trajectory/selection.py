"""Which checkpoints of a series are taken: steps that count, each of them once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubextrap.errors import StepError
from hubextrap.methods import MAX_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint, Series

_NEAREST_SHOWN = 4


@dataclass(frozen=True, slots=True)
class TrajectoryOptions:
    """Which series of checkpoints in a repo or folder, and which of its steps."""

    pattern: str | None = None
    """Reads the names instead of the built-in grammar, e.g. ``step_{step}``."""
    series: str | None = None
    """The one to take where several are found, by its pattern or the start of it."""
    min_step: int | None = None
    """The first step to take, and the last one: both are included."""
    max_step: int | None = None
    steps: Sequence[int] | None = None
    """Exactly these; each has to be there."""
    base: str | None = None
    """Reference of the model at step 0, where the series does not hold it; or of the adapters' base."""
    step_scale: float = 1.0
    """Steps per unit of the number in the name, e.g. 50 for epochs of 50 steps; rounded."""

    def takes(self, step: int) -> bool:
        """Whether a step lies between the bounds."""
        low, high = self.min_step, self.max_step
        return (low is None or step >= low) and (high is None or step <= high)

    @property
    def bounds(self) -> str:
        """In words; "" where there are none."""
        ends = (("from", self.min_step), ("up to", self.max_step))
        return " ".join(f"{word} {step}" for word, step in ends if step is not None)


def scaled_by(series: Series, scale: float) -> Series:
    """The series with every number in a name times ``scale``, rounded, as the step.

    Raises:
        StepError: the scale is not a finite number above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise StepError(f"step_scale {scale}: give a number above 0")
    if scale == 1:
        return series
    if (largest := max((item.step for item in series.checkpoints), default=0)) * scale > MAX_STEP:
        raise StepError(
            f"step_scale {scale:g}: makes step {largest} larger than {MAX_STEP}, the most that a step may be"
        )

    def scaled(checkpoint: Checkpoint) -> Checkpoint:
        return replace(checkpoint, step=round(checkpoint.step * scale))

    return replace(
        series,
        checkpoints=tuple(scaled(checkpoint) for checkpoint in series.checkpoints),
        passed_over=tuple(replace(over, checkpoint=scaled(over.checkpoint)) for over in series.passed_over),
    )


def check_distinct(checkpoints: tuple[Checkpoint, ...], reference: str) -> None:
    """Refuse two checkpoints at one step; ``checkpoints`` are in step order.

    Raises:
        StepError: it names both.
    """
    for one, other in itertools.pairwise(checkpoints):
        if one.step == other.step:
            raise StepError(
                f"{reference}: step {one.step} is there twice, {place_of(one)} and {place_of(other)}; give a "
                "narrower pattern, another step_scale, or list the checkpoints one by one",
                step=one.step,
            )


def select_steps(
    series: Series, reference: str, asked: TrajectoryOptions, *, base_at_0: bool = False
) -> tuple[Checkpoint, ...]:
    """The checkpoints between the bounds, or exactly those at the steps asked for.

    Args:
        base_at_0: leave out a step 0 that is asked for and not there, as adapters' base needs no file.

    Raises:
        StepError: a step that is asked for is not there, or none is left.
    """
    by_step = {one.step: one for one in series.checkpoints if asked.takes(one.step)}
    if not by_step:
        first, last = series.checkpoints[0].step, series.checkpoints[-1].step
        raise StepError(
            f"{reference}: no step {asked.bounds}; the series {series.pattern} has {first} to {last}"
        )
    wanted = sorted(set(by_step if asked.steps is None else asked.steps))
    if base_at_0 and asked.takes(0) and wanted[:1] == [0] and 0 not in by_step:
        wanted = wanted[1:] or wanted
    for step in [step for step in wanted if step not in by_step]:
        for over in series.passed_over:
            if over.checkpoint.step == step:
                raise StepError(f"{reference}: step {step} cannot be taken, {over}", step=step)
        where = f"there {asked.bounds}".rstrip()
        nearest = sorted(sorted(by_step, key=lambda other: abs(other - step))[:_NEAREST_SHOWN])
        shown = ", ".join(map(str, nearest))
        raise StepError(f"{reference}: step {step} is not {where}; the nearest are {shown}", step=step)
    return tuple(by_step[step] for step in wanted)


def place_of(checkpoint: Checkpoint) -> str:
    """The checkpoint's name with the start of its commit."""
    return checkpoint.name + (f" ({checkpoint.commit[:8]})" if checkpoint.commit else "")
