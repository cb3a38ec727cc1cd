"""Where checkpoints lie and at which steps: references, step names, discovery and pinning."""

from __future__ import annotations

from hubextrap.trajectory.checkpoint import UNKNOWN_STEP, Checkpoint, Series, Trajectory, say_same_weights
from hubextrap.trajectory.discover import (
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
)
from hubextrap.trajectory.observed import find_recipe_trajectory
from hubextrap.trajectory.options import TrajectoryOptions
from hubextrap.trajectory.pins import Pins
from hubextrap.trajectory.reference import Reference, parse_reference
from hubextrap.trajectory.selection import scaled_by

__all__ = [
    "UNKNOWN_STEP",
    "Checkpoint",
    "Pins",
    "Reference",
    "Series",
    "Trajectory",
    "TrajectoryOptions",
    "find_recipe_trajectory",
    "find_series",
    "find_trajectory",
    "parse_reference",
    "pin_checkpoints",
    "resolve_checkpoint",
    "say_same_weights",
    "scaled_by",
]
