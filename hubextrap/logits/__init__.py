"""Output-space extrapolation: one causal LM that mixes the logits of K checkpoints while decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubextrap.logits.loading import load_tokenizer
    from hubextrap.logits.logprobs import LogProbRequest, measure_logprobs
    from hubextrap.logits.mixture import Mixture, recipe_gram_matrix, recipe_mixture
    from hubextrap.logits.model import ExtrapolatedForCausalLM

__all__ = [
    "ExtrapolatedForCausalLM",
    "LogProbRequest",
    "Mixture",
    "load_tokenizer",
    "measure_logprobs",
    "recipe_gram_matrix",
    "recipe_mixture",
]

_MODULES = {
    "ExtrapolatedForCausalLM": "model",
    "LogProbRequest": "logprobs",
    "Mixture": "mixture",
    "load_tokenizer": "loading",
    "measure_logprobs": "logprobs",
    "recipe_gram_matrix": "mixture",
    "recipe_mixture": "mixture",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
