"""`complete`: continue prompts with a recipe's mixture of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import RecipeError
from hubextrap.evaluate.run import chosen_device
from hubextrap.logits.completing import Sampling
from hubextrap.logits.completing import complete as complete_one
from hubextrap.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hubextrap.recipe import Recipe


def complete(
    recipe: Recipe,
    prompts: Sequence[str],
    *,
    target_step: int | None = None,
    sampling: Sampling | None = None,
    chat: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    on_prompt: Callable[[str], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    on_end: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """The completions of ``prompts``, one by one.

    Args:
        target_step: one of the recipe's; may be left out where it has just one.
        chat: make each prompt a user's message in the tokenizer's chat template.
        device: ``auto`` takes the first CUDA device where there is one; else as torch names it.
        dtype: ``auto`` for each checkpoint's own, or as torch names it.
        on_prompt: told of each prompt before its completion begins.
        on_text: told of each piece of a completion as soon as it is there.
        on_end: told when a completion has ended.

    Raises:
        RecipeError: the recipe mixes weights, or there is no prompt.
        HubExtrapError: see `recipe_mixture` and `ExtrapolatedForCausalLM`.
    """
    if recipe.space != "logits":
        raise RecipeError(
            "the recipe mixes weights; to try it without writing a model, put `space: logits` into it, or "
            "merge it and load the folder"
        )
    if not prompts:
        raise RecipeError("no prompt is given")
    from hubextrap.logits import ExtrapolatedForCausalLM, recipe_mixture

    progress = progress or SilentProgress()
    device = chosen_device(device)
    mixed = recipe_mixture(recipe, target_step=target_step, progress=progress)
    model = ExtrapolatedForCausalLM.from_mixture(mixed, device=device, dtype=dtype, progress=progress)
    completions = []
    for prompt in prompts:
        if on_prompt is not None:
            on_prompt(prompt)
        completions.append(complete_one(model, prompt, sampling or Sampling(), chat=chat, on_text=on_text))
        if on_end is not None:
            on_end()
    return completions
