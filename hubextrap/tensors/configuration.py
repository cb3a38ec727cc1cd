"""What a checkpoint's config.json says about its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import Source

_QUANTISATION = ("quantization_config", "compression_config", "quantization")
"""transformers' key, that of compressed-tensors at first, and MLX's."""


def read_config(source: Source) -> dict[str, Any]:
    """config.json; empty where there is none.

    Raises:
        CorruptFile: it is no JSON object.
        SourceError: it could not be read.
    """
    if "config.json" not in source.files():
        return {}
    config = parse_json(source.read_file("config.json"), f"{source.name}: config.json", remedy="repair it")
    if not isinstance(config, dict):
        raise CorruptFile(f"{source.name}: config.json holds no JSON object; repair it")
    return config


def ties_embeddings(source: Source) -> bool:
    """What config.json says of tied embeddings; where it says nothing, the tensors that are stored speak."""
    return bool(read_config(source).get("tie_word_embeddings", False))


def quantisation_method(config: Mapping[str, Any]) -> str | None:
    """The quant_method of a configuration or of one inside it (text_config); "" where it has no name.

    None where the weights are not said to be quantised.
    """
    for key in _QUANTISATION:
        found = config.get(key)
        if isinstance(found, dict) and found:
            return str(found.get("quant_method") or "")
    inner = (quantisation_method(value) for value in config.values() if isinstance(value, dict))
    return next((method for method in inner if method is not None), None)
