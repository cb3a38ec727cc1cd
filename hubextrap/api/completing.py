"""`complete`: continue prompts with a recipe's mixture of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import RecipeError
from hubextrap.evaluation.run import chosen_device
from hubextrap.extras import require
from hubextrap.given import one_of, recipe_of, texts_of
from hubextrap.logits.completing import Sampling
from hubextrap.logits.completing import complete as complete_one
from hubextrap.logits.loading import check_loadable
from hubextrap.logits.mixture import chosen_target, recipe_mixture
from hubextrap.opening import Run
from hubextrap.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan


@dataclass(frozen=True, slots=True)
class Completing:
    """How prompts are put to a mixture, and who is told of the completions while they come."""

    chat: bool = False
    """Make each prompt a user's message in the tokenizer's chat template."""
    device: str = "auto"
    """``auto`` takes the first CUDA device where there is one; else as torch names it."""
    dtype: str = "auto"
    """``auto`` for each checkpoint's own, or as torch names it."""
    on_prompt: Callable[[str], None] | None = None
    """Told of each prompt before its completion begins."""
    on_text: Callable[[str], None] | None = None
    """Told of each piece of a completion as soon as it is there."""
    on_end: Callable[[], None] | None = None
    """Told when a completion has ended."""


def complete(
    recipe: Recipe | Path | str,
    prompts: Sequence[str] | str,
    *,
    target_step: int | None = None,
    sampling: Sampling | None = None,
    how: Completing | None = None,
    scan: Scan | Path | str | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The completions of ``prompts``, one by one.

    Args:
        recipe: it, or its file.
        prompts: one, or several.
        target_step: one of the recipe's; may be left out where it has just one.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.

    Raises:
        RecipeError: the recipe mixes weights, there is no prompt, or the scan has no effect.
        MissingExtra: torch or transformers cannot be imported.
        HubExtrapError: see `recipe_mixture` and `ExtrapolatedForCausalLM`.
    """
    recipe = recipe_of(recipe)
    sampling, how = one_of("sampling", Sampling, sampling), one_of("how", Completing, how)
    if recipe.space != "logits":
        raise RecipeError(
            "the recipe mixes weights; to try it without writing a model, put `space: logits` into it, or "
            "merge it and load the folder"
        )
    if not (prompts := texts_of("prompts", prompts)):
        raise RecipeError("no prompt is given")
    if recipe.target_steps:  # else they are known once the run is
        chosen_target(recipe, target_step)
    progress, how = progress or SilentProgress(), how or Completing()
    with Run.of(recipe, scan=scan, progress=progress) as run:
        require("logits", "completing a prompt")  # once the checkpoints are found, before weights are read
        device = chosen_device(how.device)
        check_loadable(run.trajectory.last, chat=how.chat, bases=run.bases)
        mixed = recipe_mixture(recipe, target_step=target_step, run=run)
    from hubextrap.logits import ExtrapolatedForCausalLM

    model = ExtrapolatedForCausalLM.from_mixture(mixed, device=device, dtype=how.dtype, progress=progress)
    completions = []
    for prompt in prompts:
        if how.on_prompt is not None:
            how.on_prompt(prompt)
        completions.append(
            complete_one(model, prompt, sampling or Sampling(), chat=how.chat, on_text=how.on_text)
        )
        if how.on_end is not None:
            how.on_end()
    return completions
