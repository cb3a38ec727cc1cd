"""The recipe: what to predict, from what, how, and where it goes."""

from __future__ import annotations

from hubextrap.recipe.drawing_up import DRAWN_UP, draw_up
from hubextrap.recipe.models import (
    EvaluateSection,
    Parameters,
    PushSection,
    Recipe,
    TensorRule,
)
from hubextrap.recipe.outputs import OutputSection
from hubextrap.recipe.parsing import (
    check_output_section,
    load_recipe,
    load_reground_recipe,
    load_watch_recipe,
    naming_of,
    parse_recipe,
    parse_reground_recipe,
    parse_watch_recipe,
    validate_recipes,
)
from hubextrap.recipe.regrounding import GuardSection, RegroundPushSection, RegroundRecipe, RegroundSection
from hubextrap.recipe.shipped import ShippedRecipe, bundled_names, copy_shipped, shipped_recipes
from hubextrap.recipe.tensor_names import Naming, TensorNames
from hubextrap.recipe.trajectories import CheckpointEntry, StepSelection, TrajectorySection
from hubextrap.recipe.watching import WatchEvaluateSection, WatchRecipe, WatchSection, WatchTarget

__all__ = [
    "DRAWN_UP",
    "CheckpointEntry",
    "EvaluateSection",
    "GuardSection",
    "Naming",
    "OutputSection",
    "Parameters",
    "PushSection",
    "Recipe",
    "RegroundPushSection",
    "RegroundRecipe",
    "RegroundSection",
    "ShippedRecipe",
    "StepSelection",
    "TensorNames",
    "TensorRule",
    "TrajectorySection",
    "WatchEvaluateSection",
    "WatchRecipe",
    "WatchSection",
    "WatchTarget",
    "bundled_names",
    "check_output_section",
    "copy_shipped",
    "draw_up",
    "load_recipe",
    "load_reground_recipe",
    "load_watch_recipe",
    "naming_of",
    "parse_recipe",
    "parse_reground_recipe",
    "parse_watch_recipe",
    "shipped_recipes",
    "validate_recipes",
]
