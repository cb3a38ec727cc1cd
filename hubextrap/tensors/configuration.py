"""What a checkpoint's config.json says about its tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source


def ties_embeddings(source: Source) -> bool:
    """What config.json says of tied embeddings; where it says nothing, the tensors that are stored speak."""
    if "config.json" not in source.files():
        return False
    try:
        config = json.loads(source.read_file("config.json"))
    except ValueError as error:
        raise CorruptFile(f"{source.name}: config.json is not valid JSON ({error}); repair it") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"{source.name}: config.json holds no JSON object; repair it")
    return bool(config.get("tie_word_embeddings", False))
