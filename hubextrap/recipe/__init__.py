"""The recipe: what to predict, from what, how, and where it goes."""

from __future__ import annotations

from hubextrap.recipe.models import (
    CheckpointEntry,
    EvaluateSection,
    Parameters,
    PushSection,
    Recipe,
    StepSelection,
    TensorRule,
    TrajectorySection,
)
from hubextrap.recipe.parsing import load_recipe, parse_recipe, validate_recipes
from hubextrap.recipe.shipped import ShippedRecipe, copy_shipped, shipped_recipes

__all__ = [
    "CheckpointEntry",
    "EvaluateSection",
    "Parameters",
    "PushSection",
    "Recipe",
    "ShippedRecipe",
    "StepSelection",
    "TensorRule",
    "TrajectorySection",
    "copy_shipped",
    "load_recipe",
    "parse_recipe",
    "shipped_recipes",
    "validate_recipes",
]
