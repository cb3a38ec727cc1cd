"""Completing prompts with a mixture, piece by piece.

Imports torch and transformers inside functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError
from hubextrap.hub_access import reason
from hubextrap.logits.responses import as_chat

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubextrap.logits.model import ExtrapolatedForCausalLM


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Of the checkpoint's own generation settings, only the special tokens count."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: the likeliest token, always."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    """Set anew for each prompt, so that a completion does not depend on the prompts before it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise HubExtrapError(f"temperature {self.temperature}: give a number, 0 or above")
        if not 0 < self.top_p <= 1:
            raise HubExtrapError(f"top_p {self.top_p}: give a number above 0 and at most 1")
        if not 0 <= self.seed < 2**64:
            raise HubExtrapError(f"seed {self.seed}: give a number from 0 to below 2**64")
        if self.temperature == 0 and (self.top_p, self.top_k, self.seed) != (1.0, 0, 0):
            raise HubExtrapError(
                "top_p, top_k and seed have no effect at temperature 0: the likeliest token is taken"
            )


def complete(
    model: ExtrapolatedForCausalLM,
    prompt: str,
    sampling: Sampling,
    *,
    chat: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The completion of one prompt, without special tokens.

    Args:
        chat: make the prompt a user's message in the tokenizer's chat template.
        on_text: told of each piece as soon as it is there.

    Raises:
        UnsupportedCheckpoint: the tokenizer has no chat template that takes it.
        HubExtrapError: the mixture has no tokenizer, or the prompt is empty.
    """
    import torch
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if on_text is not None and text:
                on_text(text)

    mixed: Any = model
    tokenizer = mixed.tokenizer
    if tokenizer is None:
        raise HubExtrapError("these models were handed in without a tokenizer; use from_checkpoints")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise HubExtrapError(f"the prompt {prompt[:60]!r} holds bytes that are not UTF-8 text")
    if chat:
        prompt = as_chat(tokenizer, prompt)
    # a template writes its own special tokens
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    if tokens["input_ids"].shape[1] == 0:
        raise HubExtrapError("the prompt is empty; write at least one character")
    place = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
    torch.manual_seed(sampling.seed)
    before, config = model.generation_config, _generation_config(model, sampling)
    # generate() fills what its configuration leaves open (beams, penalties, …) from the model's
    model.generation_config = config
    try:
        with torch.inference_mode():
            output = mixed.generate(
                **place,
                generation_config=config,
                streamer=Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True),
            )
    except (RuntimeError, ValueError, IndexError) as error:  # a device or a model that cannot
        raise HubExtrapError(f"the completion of {prompt[:60]!r} failed: {reason(error)}") from error
    finally:
        model.generation_config = before
    text: str = tokenizer.decode(output[0, place["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def _generation_config(model: ExtrapolatedForCausalLM, sampling: Sampling) -> Any:
    from transformers import GenerationConfig

    own: Any = model.generation_config
    drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        drawn |= {key: getattr(sampling, key) for key in ("temperature", "top_p", "top_k")}
    ends, pad = own.eos_token_id, own.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=pad,
        **drawn,
    )
