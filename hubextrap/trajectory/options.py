"""Which checkpoints of a run are taken: one object from the recipe or the command line to what finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.recipe import TrajectorySection


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
    """Reference of the model at step 0, where the series does not hold it."""
    step_scale: float = 1.0
    """Steps per unit of the number in the name, e.g. 50 for epochs of 50 steps; rounded."""

    @classmethod
    def of(cls, section: TrajectorySection) -> TrajectoryOptions:
        """What a recipe's trajectory section with a ``repo`` says."""
        chosen = section.steps
        return cls(
            chosen.pattern, chosen.series, chosen.min, chosen.max, chosen.only, section.base, chosen.scale
        )
