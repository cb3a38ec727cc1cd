"""`run` for a recipe with ``space: logits``: what stands beside the mixture in an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import RecipeError
from hubextrap.evaluate.table import PREDICTION
from hubextrap.logits import Mixture, recipe_gram_matrix, recipe_mixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hubextrap.api.against import Against
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import Checkpoint


def check_weights(recipe: Recipe) -> None:
    """Refuse to merge what is to be mixed while decoding.

    Raises:
        RecipeError: the recipe has ``space: logits``.
    """
    if recipe.space == "logits":
        raise RecipeError(
            "space: logits mixes outputs while decoding, so there are no weights to merge; `hubextrap run` "
            "evaluates the mixture, `hubextrap generate` completes prompts; for weights, remove the line"
        )


def check_mixed_run(recipe: Recipe, out: Path | str | None) -> None:
    """Refuse a run of ``space: logits`` that would do nothing, or cannot do what it is asked for.

    Raises:
        RecipeError: it has no evaluate section, or an output folder is given.
    """
    if out is not None:
        raise RecipeError("--out: with space: logits there are no weights to write; leave it out")
    if recipe.evaluate is None:
        raise RecipeError(
            "space: logits writes no model, so a run is its evaluation; add an evaluate section, or complete "
            "prompts with `hubextrap generate`"
        )


def mixed_rows(
    recipe: Recipe, against: Against, progress: Progress
) -> Iterator[tuple[int, list[tuple[str, Checkpoint | Mixture]]]]:
    """For each target step, the mixture and what the recipe compares it with, labelled.

    Raises:
        HubExtrapError: see `recipe_mixture`.
    """
    trajectory = against.trajectory
    gram_matrix = recipe_gram_matrix(recipe, trajectory, progress)
    for step in recipe.target_steps:
        mixed = recipe_mixture(
            recipe, target_step=step, trajectory=trajectory, gram_matrix=gram_matrix, progress=progress
        )
        yield step, [(PREDICTION, mixed), *against.at(step, progress)]
