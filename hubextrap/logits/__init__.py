"""Output-space extrapolation: one causal LM that mixes the logits of K checkpoints while decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.logits.loading import load_tokenizer
    from hubextrap.logits.logprobs import LogProbRequest, measure_logprobs
    from hubextrap.logits.mixture import Mixture, recipe_mixture
    from hubextrap.logits.model import ExtrapolatedForCausalLM

__all__ = [
    "ExtrapolatedForCausalLM",
    "LogProbRequest",
    "Mixture",
    "load_tokenizer",
    "measure_logprobs",
    "recipe_mixture",
]

__getattr__ = names_of(__name__)
