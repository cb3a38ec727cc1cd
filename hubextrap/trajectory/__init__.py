"""Where checkpoints lie and at which steps: references, step names, discovery and pinning."""

from __future__ import annotations

from hubextrap.trajectory.checkpoint import UNKNOWN_STEP, Checkpoint, Series, Trajectory, say_same_weights
from hubextrap.trajectory.discover import (
    find_recipe_trajectory,
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
)
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.reference import parse_reference
from hubextrap.trajectory.run_name import path_in_run, paths_in_run, run_name
from hubextrap.trajectory.selection import TrajectoryOptions, scaled_by

__all__ = [
    "UNKNOWN_STEP",
    "Checkpoint",
    "Pins",
    "Series",
    "Trajectory",
    "TrajectoryOptions",
    "find_recipe_trajectory",
    "find_series",
    "find_trajectory",
    "parse_reference",
    "path_in_run",
    "paths_in_run",
    "pin_checkpoints",
    "resolve_checkpoint",
    "run_name",
    "say_same_weights",
    "scaled_by",
]
