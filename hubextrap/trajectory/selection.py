"""Which checkpoints of a series are taken: steps that count, each of them once."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import StepError
from hubextrap.methods import MAX_STEP

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint, Series

_NEAREST_SHOWN = 4


def scaled_by(series: Series, scale: float) -> Series:
    """The series with every number in a name times ``scale``, rounded, as the step.

    Raises:
        StepError: the scale is not a finite number above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise StepError(f"step_scale {scale}: it has to be a number above 0")
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
                "narrower pattern, another step_scale, or list the checkpoints one by one"
            )


def select_steps(
    series: Series, reference: str, low: int | None, high: int | None, steps: Sequence[int] | None
) -> tuple[Checkpoint, ...]:
    """The checkpoints from step ``low`` to ``high``, both included, or exactly those at ``steps``.

    Raises:
        StepError: a step of ``steps`` is not there, or none is left.
    """
    chosen = tuple(checkpoint for checkpoint in series.checkpoints if is_within(checkpoint.step, low, high))
    if not chosen:
        first, last = series.checkpoints[0].step, series.checkpoints[-1].step
        raise StepError(
            f"{reference}: no step {_range(low, high)}; the series {series.pattern} has {first} to {last}"
        )
    if steps is None:
        return chosen
    by_step = {checkpoint.step: checkpoint for checkpoint in chosen}
    passed_over = {over.checkpoint.step: over for over in series.passed_over}
    for step in sorted(set(steps) - by_step.keys()):
        if step in passed_over:
            raise StepError(f"{reference}: step {step} cannot be taken, {passed_over[step]}")
        bounds = "" if low is None and high is None else f" {_range(low, high)}"
        raise StepError(
            f"{reference}: step {step} is not there{bounds}; the nearest are {_nearest(step, by_step)}"
        )
    return tuple(by_step[step] for step in sorted(set(steps)))


def is_within(step: int, low: int | None, high: int | None) -> bool:
    """Whether a step lies between the bounds, both included."""
    return (low is None or step >= low) and (high is None or step <= high)


def place_of(checkpoint: Checkpoint) -> str:
    """The checkpoint's name with the start of its commit."""
    return checkpoint.name + (f" ({checkpoint.commit[:8]})" if checkpoint.commit else "")


def _range(low: int | None, high: int | None) -> str:
    return " ".join(
        [*([f"from {low}"] if low is not None else []), *([f"up to {high}"] if high is not None else [])]
    )


def _nearest(step: int, there: Collection[int]) -> str:
    nearest = sorted(there, key=lambda other: abs(other - step))[:_NEAREST_SHOWN]
    return ", ".join(map(str, sorted(nearest)))
