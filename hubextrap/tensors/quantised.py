"""Which tensors are quantised weights, told by names, dtypes and shapes alone."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from hubextrap.tensors.layout import TensorInfo

_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTISED_PARTS = frozenset(
    {"absmax", "nested_absmax", "quant_map", "nested_quant_map", "quant_state", "scb"}
    | {"qweight", "qzeros", "qidxs", "g_idx", "weight_packed", "w_q", "_data"}
)
"""Parts of names that only quantised weights have, in whatever dtype they are stored: bitsandbytes also keeps
packed numbers in bfloat16."""
_SCALE = re.compile(r"scale|absmax|amax|zero|^scb$|codebook|centroid|lookup_table|_lut", re.IGNORECASE)
_BUFFER = re.compile(r"(?:bias(?:es)?|mask|(?:^|_)(?:ids|tril|triu|buckets?)|_index|^_extra_state\w*)$")
"""Integers that are no weights: `attn.bias`, the causal mask of GPT-2 and its heirs, and what else masks are
called; position_ids; what TransformerEngine keeps beside its layers."""


def quantised_pair(tensors: Mapping[str, TensorInfo]) -> tuple[str, str | None] | None:
    """A quantised tensor and what belongs to it, its scale first of all; None where all weights are plain.

    Integers and float8 alone are no sign: causal masks, position numbers and counters are integers too.
    """
    packed = [info for info in tensors.values() if _may_be_packed(info)]
    if packed:  # in most models nothing is
        plain = _plain_modules(tensors)
        found = _pair_by_name(tensors, _packed_places(packed, plain))
        if found := found or _pair_without_name(tensors, packed, plain):
            return found
    return next(((name, None) for name, info in tensors.items() if _is_packed_by_name(name, info)), None)


def _pair_by_name(tensors: Mapping[str, TensorInfo], packed: Mapping[str, str]) -> tuple[str, str] | None:
    """A packed tensor and what is called like its scale.

    Args:
        packed: `_packed_places`.
    """
    for name, info in tensors.items():
        owner = next((packed[place] for place in _places_of_scale(name) if place in packed), None)
        if owner is not None and owner != name and _elements(tensors[owner]) >= _elements(info):
            return owner, name
    return None


def _is_packed_by_name(name: str, info: TensorInfo) -> bool:
    if info.dtype in ("I8", "U8") and len(info.shape) > 1 and _last(name) == "weight":
        return True
    if info.dtype == "F8_E8M0":  # it holds powers of two and nothing else
        return True
    return not _QUANTISED_PARTS.isdisjoint(name.lower().split("."))


# the parts of 45,000 names are a few hundred
_scale = lru_cache(maxsize=4096)(_SCALE.search)


def _packed_places(packed: Sequence[TensorInfo], plain: Collection[str]) -> dict[str, str]:
    """Where a scale of an integer or float8 tensor would lie, to the largest such tensor there.

    Args:
        plain: `_plain_modules`.
    """
    places: dict[str, str] = {}
    largest: dict[str, int] = {}
    for info in packed:
        name, size = info.name, _elements(info)
        if _scale(_last(name)):
            continue
        found = [name, *filter(None, [_stem(name)])]
        # others number things; they only count beside a scale of their name
        if _may_be_matrix(info) and (_module(name) not in plain or info.dtype.startswith("F8")):
            found.append(_module(name))
        for place in found:
            if place not in places or largest[place] < size:
                places[place], largest[place] = name, size
    return places


def _places_of_scale(name: str) -> Iterator[str]:
    """Names and modules that a tensor called like a scale may belong to; none for any other name."""
    module, last = _module(name), _last(name)
    if last == "weight" and _scale(_last(module)):  # VPTQ's centroids.weight
        yield _module(module)
    if not _scale(last):
        return
    start = len(name) - len(last)
    for cut in reversed([match.start() for match in re.finditer(r"[_:]", last)]):
        yield name[: start + cut]
    yield module
    if "." in module:
        yield _module(module)


def _pair_without_name(
    tensors: Mapping[str, TensorInfo], packed: Sequence[TensorInfo], plain: Collection[str]
) -> tuple[str, str] | None:
    """A packed tensor and a float beside it in a module without a plain weight, whatever they are called."""
    largest: dict[str, TensorInfo] = {}
    for info in filter(_may_be_matrix, packed):
        for place in filter(None, (_module(info.name), info.name)):
            if place not in largest or _elements(largest[place]) < _elements(info):
                largest[place] = info
    if not largest:
        return None
    for name, info in tensors.items():
        if info.dtype not in _FLOATS or _BUFFER.search(_last(name)):
            continue
        for place in filter(None, (_module(name), _stem(name))):
            owner = None if place in plain else largest.get(place)
            if owner is not None and _elements(owner) >= 2 * _elements(info):
                return owner.name, name
    return None


def _plain_modules(tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Modules that hold a weight of ordinary numbers."""
    return {
        _module(name) for name, info in tensors.items() if info.dtype in _FLOATS and _last(name) == "weight"
    }


def _may_be_matrix(info: TensorInfo) -> bool:
    """Whether a packed tensor may be a weight by itself, and does not just number things."""
    return info.dtype.startswith("F8") or (len(info.shape) > 1 and not info.dtype.endswith("64"))


def _may_be_packed(info: TensorInfo) -> bool:
    return info.dtype.startswith(("F8", "I", "U")) and not _BUFFER.search(_last(info.name))


def _elements(info: TensorInfo) -> int:
    return info.nbytes // DTYPES[info.dtype].itemsize


def _stem(name: str) -> str:
    """A name without the last word of its last part: ``x.w_blocks`` → ``x.w``; "" where that is one word."""
    last = _last(name)
    cut = max(last.rfind("_"), last.rfind(":"))
    return name[: len(name) - len(last) + cut] if cut > 0 else ""


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
