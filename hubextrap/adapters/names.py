"""What peft's names say: which tensor of the base a part of an adapter belongs to, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hubextrap.adapters.config import LONGEST_NAME, MERGE_EACH
from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.combinable import is_adapter_tensor
from hubextrap.tensors.names import unwrapped

Role = Literal["A", "B", "bias", "whole", "base", "unused"]
PREFIX = "base_model.model."
"""What peft puts ahead of the base's own names."""
_FACTORS: dict[str, Role] = {"lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
_BASE_LAYER, _SAVED, _ORIGINAL = "base_layer", "modules_to_save", "original_module"


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of an adapter's file."""

    module: str
    """The module of the base that it belongs to; of ``whole``, the tensor's own name in the base."""
    role: Role
    """A factor; the bias of B; a tensor of the base that was trained itself; the frozen weight inside a LoRA,
    which peft saves of embeddings; or one that takes no part."""
    embedding: bool = False
    """Whether it is a factor of an embedding, whose product is transposed."""
    depth: int = 0
    """How many wrappers around one module lie outside the one that it belongs to."""


def part_of(name: str, where: str) -> Part:
    """What a tensor's name says.

    The adapter's own name may be there or not (``lora_A.default.weight``), as may the prefix: trainers export
    with peft, with `get_peft_model_state_dict`, and from the state of a wrapped model.

    Args:
        where: names the file in messages.

    Raises:
        UnsupportedCheckpoint: it is a part of something else than a LoRA.
        CorruptFile: it is empty, or too long for a name.
    """
    inner = unwrapped(name).removeprefix(PREFIX)
    if not 0 < len(inner) <= LONGEST_NAME:
        raise CorruptFile(
            f"{where}: tensor {shorten(repr(name))}: names have from 1 to {LONGEST_NAME} characters; "
            "download the file again",
            file=where,
            tensor=name,
        )
    words = inner.split(".")
    found = _factor(words)
    if found is not None:
        place, last = found
        depth = 0
        while place and place[-1] == _BASE_LAYER:
            place, depth = place[:-1], depth + 1
        if place and not {_BASE_LAYER, _SAVED} & set(place):
            factor = words[len(words) - last]
            role = "bias" if words[-1] == "bias" else _FACTORS[factor]
            return Part(".".join(place), role, "embedding" in factor, depth)
    elif _ORIGINAL in words:
        return Part(inner, "unused")
    elif words[-2:] == [_BASE_LAYER, "weight"]:
        return Part(".".join(word for word in words[:-1] if word != _BASE_LAYER), "base")
    elif not is_adapter_tensor(whole := _of_base(words)):
        return Part(whole, "whole")
    raise UnsupportedCheckpoint(
        f"{where}: tensor {shorten(repr(name))} is part of an adapter that is no plain LoRA: {MERGE_EACH}",
        file=where,
        tensor=name,
    )


def peft_name(name: str) -> str:
    """The name under which peft finds a tensor of an adapter, in whichever way a trainer wrote it."""
    words = unwrapped(name).removeprefix(PREFIX).split(".")
    if (found := _factor(words)) is not None:
        place, last = found
        own = words[len(words) - last]
        kept = [*place, own] if "embedding" in own else [*place, own, words[-1]]
    else:
        kept = _without_wrapper(words, _SAVED)
    return PREFIX + ".".join(kept)


def _factor(words: list[str]) -> tuple[list[str], int] | None:
    """The words ahead of a factor's own, and how many those are: ``lora_A``, adapter's name, ``weight``."""
    for count in (1, 2, 3):
        own = words[-count:]
        if len(own) < count or own[0] not in _FACTORS:
            continue
        is_module = "embedding" not in own[0]
        if is_module == (own[-1] in ("weight", "bias")) and not (own[0] == "lora_A" and own[-1] == "bias"):
            return words[:-count], count
    return None


def _of_base(words: list[str]) -> str:
    """The base's own name of a tensor inside wrappers."""
    return ".".join(word for word in _without_wrapper(words, _SAVED) if word != _BASE_LAYER)


def _without_wrapper(words: list[str], wrapper: str) -> list[str]:
    """A name's words without a wrapper's, and without the adapter's name that follows."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if word != wrapper and (before, word) != (wrapper, "default")]
