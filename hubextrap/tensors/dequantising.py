"""Which quantised checkpoints are read as the numbers that they stand for: where nothing is left open.

Named by config.json and confirmed by every dtype and shape. Where one tensor does not fit, none is read so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hubextrap.notebooks import and_more
from hubextrap.tensors.assembled import AssembledSource, Assembly, arranged
from hubextrap.tensors.configuration import quantisation_method, quantisations, without_quantisation
from hubextrap.tensors.dequantised import GROUP, Fp8Blocks, Mxfp4
from hubextrap.tensors.pieces import Pieces, StoredPiece
from hubextrap.tensors.quantised import quantised_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

Parts: TypeAlias = Fp8Blocks | Mxfp4
READ_AS_FLOATS = ("fp8", "mxfp4")
"""What may be read so, by its quant_method."""
_EXPERTS = re.compile(r"((?:.*\.)?experts\.(?:gate_up|down)_proj)_blocks")
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCK = (128, 128)
"""Of DeepSeek's definition, and what transformers takes where the configuration does not say it."""


@dataclass(frozen=True, slots=True)
class Dequantised:
    """What the quantised tensors of a checkpoint are read as."""

    kind: str
    """What they are, in words."""
    parts: Mapping[str, tuple[str, Parts]]
    """The name and the parts of each tensor that is read, by the name of what stores its numbers."""
    beside: frozenset[str]
    """The tensors that store their scales, or that only quantised computations need."""


class Read(NamedTuple):
    """A checkpoint in the form in which it is read."""

    source: Source
    layout: CheckpointLayout
    method: str | None
    """The quant_method of the weights that are still quantised, as `configuration.quantisation_method`."""


class Dequantising:
    """Checkpoints of a run, one after the other; equal ones share how they are read. Not thread-safe."""

    def __init__(self) -> None:
        self._assemblies: dict[tuple[int, int], tuple[Assembly, str] | None] = {}
        self._held: list[object] = []  # so that no other object gets their ids
        self._read: dict[str, list[str]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is read otherwise than it is stored."""
        return tuple(f"{names[0]}{and_more(len(names))}: {said}" for said, names in self._read.items())

    def read(self, source: Source, layout: CheckpointLayout, config: Mapping[str, Any]) -> Read:
        """The checkpoint with its quantised weights as floats, where that is possible, as stored otherwise.

        Args:
            layout: the source's.
            config: its config.json.
        """
        key = id(layout.tensors), id(config)
        if key not in self._assemblies:
            self._held += [layout.tensors, config]
            self._assemblies[key] = _assembly(layout, config)
        found = self._assemblies[key]
        if found is None:
            return Read(source, layout, quantisation_method(config))
        assembly, said = found
        self._read.setdefault(said, []).append(layout.name)
        made = AssembledSource(source, assembly)
        return Read(made, made.layout, None)


def _assembly(layout: CheckpointLayout, config: Mapping[str, Any]) -> tuple[Assembly, str] | None:
    """How a checkpoint is read as floats, and what to say of it."""
    stated = list(quantisations(config))
    if not stated or any(one != stated[0] for one in stated):
        return None
    tensors = layout.tensors
    found = dequantised(tensors, stated[0])
    if found is None:
        return None
    read: list[tuple[str, Parts | Pieces]] = []
    for name, info in tensors.items():
        if name in found.parts:
            read.append(found.parts[name])
        elif name not in found.beside:
            piece = StoredPiece(info.file, info.offset, (0,) * len(info.shape), info.shape)
            read.append((name, Pieces(info.dtype, info.shape, (piece,))))
    hides = [*(shard.file for shard in layout.shards), *filter(None, [layout.index_file])]
    assembly = replace(arranged(read, hides), texts={"config.json": without_quantisation(config)})
    if quantised_pair({one.name: one for shard in assembly.shards for one in shard.tensors}) is not None:
        return None
    count = f"{len(found.parts):,} of {len(read):,} tensors"
    return assembly, f"{count} are {found.kind}, and are read as the numbers that these stand for"


def dequantised(tensors: Mapping[str, TensorInfo], quantisation: Mapping[str, Any]) -> Dequantised | None:
    """How a checkpoint's quantised tensors are read as floats; None where that is not certain, or none are.

    Args:
        quantisation: the quantization_config of its config.json.
    """
    method = str(quantisation.get("quant_method")).lower()
    found = _fp8(tensors, quantisation) if method == "fp8" else None
    if method == "mxfp4":
        found = _mxfp4(tensors)
    return found if found is not None and found.parts else None


def _fp8(tensors: Mapping[str, TensorInfo], quantisation: Mapping[str, Any]) -> Dequantised | None:
    """DeepSeek's, as transformers reads it: ``weight`` and ``weight_scale_inv``, also of fused experts."""
    stated = quantisation.get("weight_block_size", list(_BLOCK))
    if str(quantisation.get("fmt", "e4m3")).lower() != "e4m3" or not (stated is None or _is_block(stated)):
        return None
    dtypes = (*_SCALE_DTYPES, *(("U8",) if quantisation.get("scale_fmt") == "ue8m0" else ()))
    parts: dict[str, tuple[str, Parts]] = {}
    beside: set[str] = set()
    for name, info in tensors.items():
        if not info.dtype.startswith("F8_E4M3") and not info.dtype.startswith("F8_E5M2"):
            continue
        scale = _scale_of(name, tensors)
        if info.dtype != "F8_E4M3" or scale is None or scale.dtype not in dtypes or len(info.shape) < 2:
            return None
        block = (info.shape[-2], info.shape[-1]) if stated is None else (stated[0], stated[1])
        one = Fp8Blocks(info.file, info.offset, info.shape, block, scale.file, scale.offset, scale.dtype)
        one_each = stated is None and scale.shape in ((), (1,), info.shape[:-2])
        if scale.shape != one.scale_shape and not (
            one_each and math.prod(scale.shape) == math.prod(one.scale_shape)
        ):
            return None
        parts[name] = name, one
        activations = f"{name.removesuffix('.weight')}.activation_scale", f"{name}_activation_scale"
        beside |= {scale.name, *(other for other in activations if other in tensors)}
    each = "one scale a tensor" if stated is None else f"a scale for each block of {stated[0]} × {stated[1]}"
    return Dequantised(f"FP8 with {each}", parts, frozenset(beside))


def _scale_of(name: str, tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """transformers' name of a float8 tensor's scales, or that of DeepSeek-V4, which are F8_E8M0."""
    scale = tensors.get(f"{name}_scale_inv")
    if scale is None and name.endswith(".weight"):
        other = tensors.get(f"{name.removesuffix('.weight')}.scale")
        scale = other if other is not None and other.dtype == "F8_E8M0" else None
    return scale


def _is_block(stated: object) -> bool:
    return (
        isinstance(stated, list)
        and len(stated) == 2
        and all(type(extent) is int and 0 < extent < 2**31 for extent in stated)
    )


def _mxfp4(tensors: Mapping[str, TensorInfo]) -> Dequantised | None:
    """The experts of gpt-oss: ``gate_up_proj_blocks`` and ``gate_up_proj_scales``, and ``down_proj_``."""
    parts: dict[str, tuple[str, Parts]] = {}
    beside: set[str] = set()
    for name, info in tensors.items():
        found = _EXPERTS.fullmatch(name)
        if found is None:
            continue
        scale = tensors.get(f"{found[1]}_scales")
        if scale is None or info.dtype != "U8" or scale.dtype != "U8" or found[1] in tensors:
            return None
        if len(info.shape) != 4 or info.shape[3] != GROUP // 2 or scale.shape != info.shape[:3]:
            return None
        experts, rows, groups, _ = info.shape
        shape = (experts, groups * GROUP, rows)
        parts[name] = found[1], Mxfp4(info.file, info.offset, shape, scale.file, scale.offset)
        beside.add(scale.name)
    return Dequantised("MXFP4", parts, frozenset(beside))
