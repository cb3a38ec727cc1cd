"""How likely a jump leaves the answers that the model before it gives to a recipe's prompts."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.evaluation.own_answers import MAX_ANSWER_TOKENS, draw_answers, mean_logprob
from hubextrap.evaluation.own_tasks import read_problems
from hubextrap.evaluation.run import chosen_device
from hubextrap.extras import require
from hubextrap.logits.loading import load_causal_lm, load_tokenizer
from hubextrap.logits.responses import encode_prompt
from hubextrap.trajectory import Checkpoint
from hubextrap.trajectory.local_files import files_in
from hubextrap.trajectory.weights import weights_of

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.recipe.regrounding import GuardSection


def read_prompts(guard: GuardSection) -> list[str]:
    """What the guard asks, once what asks it can be imported; nothing without prompts.

    Raises:
        MissingExtra: torch or transformers cannot be imported. EvaluationError: the file does not serve.
    """
    if guard.prompts is None:
        return []
    found = [str(row["question"]) for row in read_problems(Path(guard.prompts), None).rows]
    require("logits", "reground.guard.prompts")
    return found


def check_prompts(guard: GuardSection, model: Path) -> None:
    """Find out before any training what the guard's prompts lack.

    Raises:
        MissingExtra: torch or transformers cannot be imported.
        EvaluationError: the file does not serve, or a prompt has no tokens.
        UnsupportedCheckpoint: the model has no tokenizer, or none with a chat template that takes them.
    """
    if not (prompts := read_prompts(guard)):
        return
    tokenizer = load_tokenizer(_place(model))
    for prompt in prompts:
        encode_prompt(tokenizer, prompt, chat=guard.apply_chat_template)


def likelihoods(guard: GuardSection, before: Path, after: Path, progress: Progress) -> tuple[float, float]:
    """The mean log-probability of the first model's greedy answers under both, one in memory at a time.

    Raises:
        EvaluationError, UnsupportedCheckpoint: as `check_prompts`; or a model cannot be loaded, or asked.
    """
    import torch

    prompts, device = read_prompts(guard), chosen_device("auto")
    tokens = MAX_ANSWER_TOKENS if guard.max_tokens is None else guard.max_tokens
    tokenizer = load_tokenizer(_place(before))
    with progress.stage("own answers", 3 * len(prompts), "answers") as stage:
        model = load_causal_lm(_place(before), device=device)
        answers = draw_answers(
            model,
            tokenizer,
            prompts,
            max_tokens=tokens,
            chat=guard.apply_chat_template,
            advance=stage.advance,
        )
        first = mean_logprob(model, tokenizer, answers, advance=stage.advance)
        del model  # nothing of it is held any more when the next one is loaded
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        model = load_causal_lm(_place(after), device=device)
        return first, mean_logprob(model, tokenizer, answers, advance=stage.advance)


def _place(folder: Path) -> Checkpoint:
    place, weights = Checkpoint(0, None, "", None, str(folder)), weights_of(files_in(folder))
    return place if weights is None else weights.of(place)  # of an adapter, its base is loaded with it
