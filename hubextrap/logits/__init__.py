"""Output-space extrapolation: one causal LM that mixes the logits of K checkpoints while decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubextrap.logits.loading import load_tokenizer
    from hubextrap.logits.mixture import Mixture, recipe_mixture
    from hubextrap.logits.model import ExtrapolatedForCausalLM

__all__ = ["ExtrapolatedForCausalLM", "Mixture", "load_tokenizer", "recipe_mixture"]

_MODULES = {
    "ExtrapolatedForCausalLM": "model",
    "Mixture": "mixture",
    "load_tokenizer": "loading",
    "recipe_mixture": "mixture",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
