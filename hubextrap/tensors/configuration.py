"""What a checkpoint's config.json says about its tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hubextrap.tensors.interfaces import Source

_QUANTISATION = ("quantization_config", "compression_config", "quantization")
"""transformers' key, that of compressed-tensors at first, and MLX's."""
_ELSEWHERE = "--"
"""What transformers splits a reference to code at: what is ahead of it is a repo, or a folder anywhere."""
_KERNEL = "/"
"""What the name of an implementation has in it that is a repo of kernels, and no other has."""
_TOKENIZER = "tokenizer_config.json"
_ADAPTER = "adapter_config.json"
_MADE_HERE = ("special_tokens_map_file", "name_or_path", "chat_template")
"""What names a place on the machine that the tokenizer was made on, and is not opened; and text."""


def read_config(source: Source) -> dict[str, Any]:
    """config.json; empty where there is none.

    Raises:
        CorruptFile: it is no JSON object.
        SourceError: it could not be read.
    """
    if "config.json" not in source.files():
        return {}
    return config_object(source.read_file("config.json"), source.name)


def config_object(content: bytes, name: str) -> dict[str, Any]:
    """What a config.json holds; messages call its checkpoint ``name``.

    Raises:
        CorruptFile: it is no JSON object.
    """
    remedy = "repair it in the checkpoint"
    config = parse_json(content, f"{name}: config.json", remedy=remedy)
    if not isinstance(config, dict):
        raise CorruptFile(f"{name}: config.json is not a JSON object; {remedy}", file="config.json")
    return config


def ties_embeddings(source: Source) -> bool:
    """What config.json says of tied embeddings; where it says nothing, the tensors that are stored speak."""
    return bool(read_config(source).get("tie_word_embeddings", False))


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype in which transformers loads a model by itself, as a configuration says it: ``bfloat16``."""
    found = config.get("dtype", config.get("torch_dtype"))
    if found is None and isinstance(inner := config.get("text_config"), dict):
        return stated_dtype(inner)
    return found if isinstance(found, str) else None


def quantisation_method(config: Mapping[str, Any]) -> str | None:
    """The quant_method of a configuration or of one inside it (text_config); "" where it has no name.

    None where the weights are not said to be quantised.
    """
    found = next(quantisations(config), None)
    return None if found is None else str(found.get("quant_method") or "")


def quantisations(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a configuration, and those inside it, say of how the weights are quantised."""
    yield from (found for key in _QUANTISATION if isinstance(found := config.get(key), dict) and found)
    for key, value in config.items():
        if key not in _QUANTISATION and isinstance(value, dict):
            yield from quantisations(value)


def without_quantisation(config: Mapping[str, Any]) -> str:
    """The text of a config.json whose weights are floats, written as transformers writes it."""
    return json.dumps(_unquantised(config), indent=2) + "\n"


def _unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _unquantised(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _QUANTISATION or not isinstance(value, dict)
    }


def check_loaded(source: Source, folder: str | None, *, adapter: bool = False) -> None:
    """Refuse a checkpoint of which transformers or vLLM would load something that does not lie in it.

    A place that a tokenizer's file names is let be where nothing lies there: it is of another machine.

    Args:
        folder: where the source's files lie, if that is not a folder of the Hub's cache.
        adapter: whether it is taken for an adapter, and loaded as one.

    Raises:
        UnsupportedCheckpoint: names the file, and what it leads to.
        CorruptFile: a configuration is no JSON object.
    """
    if leads := next(leads_of(read_config(source), code=False), None):
        raise UnsupportedCheckpoint(
            f"{source.name}: config.json {leads}; remove that field, in a copy of the checkpoint"
        )
    if _ADAPTER in source.files() and not adapter:
        raise UnsupportedCheckpoint(
            f"{source.name}: has {_ADAPTER} beside its weights, so transformers would add an adapter or load "
            "another model; remove it, in a copy of the checkpoint"
        )
    if _TOKENIZER in source.files():
        named = parse_json(source.read_file(_TOKENIZER), f"{source.name}: {_TOKENIZER}", remedy="repair it")
        for key, value in named.items() if isinstance(named, dict) else ():
            for text in _texts(value) if key not in _MADE_HERE else ():
                if _lies_outside(text, folder):
                    raise UnsupportedCheckpoint(
                        f"{source.name}: {_TOKENIZER} names a file outside the checkpoint ({key}: {text!r}); "
                        "remove that field, in a copy of the checkpoint"
                    )


def _lies_outside(text: str, folder: str | None) -> bool:
    if not (text.startswith("/") or ".." in text.split("/")):
        return False
    try:
        place = Path(text)
        if not os.path.lexists(place) or place.is_dir():
            return False
        return folder is None or not place.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError):  # no name of a file
        return False


def leads_of(content: Any, *, code: bool = True) -> Iterator[str]:
    """What in a configuration sends a loader elsewhere for weights or kernels, and with ``code`` for code."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "transformers_weights" and value is not None:
                yield f"has transformers load {value!r} (transformers_weights)"
            elif key in ("auto_map", "custom_pipelines"):
                yield from _code_of(key, value, _ELSEWHERE) if code else ()
            elif "attn_implementation" in key or "experts_implementation" in key:
                yield from _code_of(key, value, _KERNEL)
            else:
                yield from leads_of(value, code=code)
    elif isinstance(content, list):
        for value in content:
            yield from leads_of(value, code=code)


def _code_of(key: str, value: Any, sign: str) -> Iterator[str]:
    return (f"takes code from another repo ({key}: {text!r})" for text in _texts(value) if sign in text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
