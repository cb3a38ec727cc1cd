"""From a recipe's trajectory section to the checkpoints that it observes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.trajectory.discover import find_trajectory, pin_checkpoints
from hubextrap.trajectory.options import TrajectoryOptions

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory.checkpoint import Trajectory
    from hubextrap.trajectory.pins import Pins


def find_recipe_trajectory(
    recipe: Recipe, progress: Progress | None = None, *, pins: Pins | None = None
) -> Trajectory:
    """The checkpoints that a recipe observes, pinned, in step order: once a command, which hands them on.

    Args:
        pins: what the command has pinned so far.

    Raises:
        TrajectoryError: they cannot be found, pinned or put in order.
    """
    section = recipe.trajectory
    if section.checkpoints is not None:
        return pin_checkpoints(
            [(entry.model, entry.step) for entry in section.checkpoints], pins=pins, progress=progress
        )
    assert section.repo is not None
    return find_trajectory(section.repo, TrajectoryOptions.of(section), pins=pins, progress=progress)
