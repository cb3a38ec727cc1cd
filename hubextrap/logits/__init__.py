"""Output-space extrapolation: one causal LM that mixes the logits of K checkpoints while decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.extras import require
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

_find = names_of(__name__)


def __getattr__(name: str) -> Any:
    if name == "ExtrapolatedForCausalLM":  # the class is made of theirs; the rest imports them when called
        require("logits", "a mixture of logits")
    return _find(name)
