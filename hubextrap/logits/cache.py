"""The caches of K models as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from collections.abc import Sequence


class CombinedCache(Cache):
    """Holds a cache a model. Its ``layers`` are all of theirs, the first model's first.

    So what generation does to a cache (reorder for beams, crop, repeat, select) reaches every model, and what
    it asks (length, batch size, whether it slides) is answered by the first model's layers.
    """

    def __init__(self, parts: Sequence[Cache]) -> None:
        super().__init__(layers=[layer for part in parts for layer in part.layers])
        self.parts = tuple(parts)
