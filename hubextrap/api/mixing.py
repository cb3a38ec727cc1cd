"""`run` for a recipe with ``space: logits``: what stands beside the mixture in an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import RecipeError, StepError
from hubextrap.evaluate import compared_checkpoints
from hubextrap.evaluate.table import BASE, LAST, PREDICTION, TARGET
from hubextrap.logits import Mixture, recipe_gram_matrix, recipe_mixture
from hubextrap.trajectory import find_recipe_trajectory, find_trajectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hubextrap.progress import Progress
    from hubextrap.recipe import EvaluateSection, Recipe
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
    recipe: Recipe, section: EvaluateSection, progress: Progress
) -> Iterator[tuple[int, list[tuple[str, Checkpoint | Mixture]]]]:
    """For each target step, the mixture and what the recipe compares it with, labelled.

    Raises:
        HubExtrapError: see `recipe_mixture`; a reference of ``evaluate.against`` leads nowhere.
    """
    trajectory = find_recipe_trajectory(recipe, progress)
    gram_matrix = recipe_gram_matrix(recipe, trajectory, progress)
    for step in recipe.target_steps:
        mixed = recipe_mixture(
            recipe, target_step=step, trajectory=trajectory, gram_matrix=gram_matrix, progress=progress
        )
        rows: dict[str, Checkpoint | Mixture] = {PREDICTION: mixed}
        for entry in section.against:
            if entry == LAST:
                rows[LAST] = trajectory.last
            elif entry == BASE:
                rows[BASE] = trajectory.base
            elif entry == TARGET:
                if (real := real_checkpoint(recipe, step, progress)) is not None:
                    rows[TARGET] = real
            else:
                rows.update(compared_checkpoints([], [entry], progress=progress))
        yield step, list(rows.items())


def real_checkpoint(recipe: Recipe, target_step: int, progress: Progress) -> Checkpoint | None:
    """The checkpoint that the run itself left at ``target_step``; None, with a word about it, without one."""
    section = recipe.trajectory
    try:
        if section.repo is None:
            raise StepError(f"step {target_step} is not in the recipe's list of checkpoints")
        found = find_trajectory(
            section.repo,
            pattern=section.steps.pattern,
            series=section.steps.series,
            steps=[target_step],
            step_scale=section.steps.scale,
        )
    except StepError as error:
        progress.say(f"the real checkpoint is not compared: {error}")
        return None
    return found.last
