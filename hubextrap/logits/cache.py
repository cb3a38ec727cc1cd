"""The caches of K models as one, and what the installed transformers calls a cache."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

_NAMES = ("cache", "past_key_values")
"""The name from transformers 5.24 on, and the one before."""

CACHE = next(name for name in _NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})
"""What the cache is called in outputs and by generation."""


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name under which ``model`` takes a cache; None where it takes none of transformers' kind."""
    # an older model's own code may still have the old name
    parameters = signature(model.forward).parameters
    return next((name for name in _NAMES if name in parameters), None)


class CombinedCache(Cache):
    """Holds one cache per model. Its ``layers`` are all of theirs, the first model's first.

    So what generation does to a cache (reorder for beams, crop, repeat, select) reaches every model, and what
    it asks (length, batch size, whether it slides) is answered by the first model's layers.
    """

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts = tuple(parts)
        super().__init__(layers=[])

    @property
    def layers(self) -> list[Any]:
        """Gathered at each look, as a cache may get its layers only while its model runs."""
        return [layer for part in self.parts for layer in part.layers]

    @layers.setter
    def layers(self, value: list[Any]) -> None:
        """The parts have them."""
