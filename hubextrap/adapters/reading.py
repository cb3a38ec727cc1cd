"""Adapters read: what each changes of the base, checked alone and together, and its factors as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.adapters.config import CONFIG_FILE, AdapterConfig, read_adapter_config
from hubextrap.adapters.factors import Factors, tensors_of
from hubextrap.errors import CheckpointMismatch, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.tensors.weights import READERS, read_shards
from hubextrap.trajectory.weights import ADAPTER_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Source

__all__ = ["Adapter", "Factors", "read_adapters", "read_pair", "read_whole"]

Room = Callable[[int], "NDArray[np.uint8]"]
"""(count,) bytes of memory that nothing else lies in."""
PICKLE_FILE = "adapter_model.bin"
_SHOWN = 3


@dataclass(frozen=True)
class Adapter:
    """One adapter, from its configuration and its header."""

    name: str
    """What messages call it."""
    config: AdapterConfig
    layout: CheckpointLayout
    """The file's own tensors."""
    factors: Mapping[str, Factors]
    """By the base's name of the tensor that they change, in the file's order."""
    whole: Mapping[str, TensorInfo]
    """Tensors of the base that were trained themselves (modules_to_save, biases), by the base's name."""

    @cached_property
    def deltas(self) -> CheckpointLayout:
        """A layout as if each tensor of the base that the adapter changes lay in its file.

        The dtype is that of the factors, the wider of the two; offsets count up from 0.
        """
        shapes = {name: (_wider(one.a.dtype, one.b.dtype), one.shape) for name, one in self.factors.items()}
        shapes |= {name: (info.dtype, info.shape) for name, info in self.whole.items()}
        tensors, offset = [], 0
        for name, (dtype, shape) in shapes.items():
            nbytes = DTYPES[dtype].itemsize * math.prod(shape)
            tensors.append(TensorInfo(name, dtype, shape, ADAPTER_FILE, offset, nbytes))
            offset += nbytes
        (own,) = self.layout.shards
        shard = ShardInfo(ADAPTER_FILE, offset, tuple(tensors), {}, own.header_sha256)
        return CheckpointLayout(self.name, (shard,), None)


def read_adapters(sources: Sequence[Source], progress: Progress | None = None) -> list[Adapter]:
    """Adapters of one run, from their configurations and headers; no factor is read.

    Raises:
        UnsupportedCheckpoint: one is no LoRA, is not linear in its products, or is a pickle.
        CorruptFile: a configuration or a header that is wrong, factors that do not fit.
        CheckpointMismatch: they are of different bases, or change different tensors of it.
        SourceError: bytes could not be read.
    """
    for source in sources:
        _check_files(source)
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-configs") as pool:
        configs = list(pool.map(read_adapter_config, sources))
    shards = read_shards([(source, ADAPTER_FILE) for source in sources], progress)
    adapters = []
    for source, config, shard in zip(sources, configs, shards, strict=True):
        layout = CheckpointLayout(source.name, (shard,), None)
        found = tensors_of(shard, config, f"{source.name}/{ADAPTER_FILE}")
        adapters.append(Adapter(source.name, config, layout, *found))
    _check_alike(adapters)
    return adapters


def fresh_bytes(count: int) -> NDArray[np.uint8]:
    """(count,): memory that holds anything."""
    return np.empty(count, np.uint8)


def read_pair(
    source: Source, factors: Factors, room: Room = fresh_bytes
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(left, right): ``scaling * left[e] @ right[e]`` is what changes in the base's tensor as it lies.

    Of shapes (experts, rows, rank) and (experts, rank, cols), experts = 1 unless the base's tensor has that
    axis; float32, exactly as stored, or float64 where they are.

    Args:
        room: gives the memory that they lie in.

    Raises:
        SourceError: bytes could not be read.
    """
    a = read_whole(source, factors.a, room)
    if factors.layout == "column":
        return a.reshape(1, -1, 1), np.ones((1, 1, 1), a.dtype)
    b = read_whole(source, factors.b, room)
    experts = factors.shape[0] if factors.layout.startswith("experts") else 1
    right = a.reshape(experts, factors.rank, a.shape[1])
    left = b.reshape(b.shape[0], factors.rank, experts).transpose(2, 0, 1)
    if factors.layout in ("transposed", "experts"):
        left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def read_whole(source: Source, info: TensorInfo, room: Room = fresh_bytes) -> NDArray[np.floating]:
    """A float tensor as float32, exactly as stored, or as float64 where it is that.

    Args:
        room: gives the memory that it lies in.

    Raises:
        SourceError: bytes could not be read.
    """
    short = info.dtype in ("BF16", "F16")
    raw = (fresh_bytes if short else room)(info.nbytes)
    source.read(info.file, info.offset, raw.data)
    if not short:
        return raw.view("<f8" if info.dtype == "F64" else "<f4").reshape(info.shape)
    values = room(2 * info.nbytes)
    if info.dtype == "BF16":  # the upper half of a float32
        np.left_shift(raw.view("<u2"), 16, out=values.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(values.view(np.float32), raw.view("<f2"))
    return values.view(np.float32).reshape(info.shape)


def _check_files(source: Source) -> None:
    files = source.files()
    if ADAPTER_FILE in files:
        return
    if PICKLE_FILE in files:
        raise UnsupportedCheckpoint(
            f"{source.name}: {PICKLE_FILE} is a pickle, and pickles are never loaded because they can run "
            "code; convert it: PeftModel.from_pretrained(base, folder).save_pretrained(other_folder) writes "
            "safetensors",
            file=PICKLE_FILE,
        )
    cut = next((file for file in sorted(files) if file.startswith("adapter_model-")), None)
    if cut is not None:
        raise UnsupportedCheckpoint(
            f"{source.name}: {cut} is one of several files of an adapter, which peft does not load either; "
            "save it in one: save_pretrained(folder, max_shard_size='1TB')",
            file=cut,
        )
    there = shorten(", ".join(sorted(files)[:12]) or "nothing", 500)
    raise UnsupportedCheckpoint(
        f"{source.name}: no {ADAPTER_FILE} is there, only: {there}; name the folder that holds the adapter"
    )


def _check_alike(adapters: Sequence[Adapter]) -> None:
    """Adapters of one run change the same tensors of one base."""
    named = [one for one in adapters if one.config.base is not None]
    for one in named[1:]:
        first, here = (adapter.config for adapter in (named[0], one))
        if (first.base, first.base_revision) != (here.base, here.base_revision):
            raise CheckpointMismatch(
                f"{named[0].name} is an adapter of {_base_of(first)}, {one.name} of {_base_of(here)}; leave "
                "one of them out. If both are the same weights, write the same base_model_name_or_path and "
                f"revision into copies of their {CONFIG_FILE}",
                file=CONFIG_FILE,
            )
    for one in adapters[1:]:
        _check_same_tensors(adapters[0], one)


def _check_same_tensors(first: Adapter, other: Adapter) -> None:
    here, there = first.deltas.tensors, other.deltas.tensors
    if here is there:
        return
    for mine, own, adapter, lacks in ((here, there, first, other), (there, here, other, first)):
        missing = [name for name in mine if name not in own]
        if missing:
            shown = ", ".join(shorten(repr(name)) for name in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
            raise CheckpointMismatch(
                f"{adapter.name} changes {shown}{more} of its base, and {lacks.name} does not: their target "
                "modules differ, so they are not of one run; leave one of them out",
                tensor=missing[0],
            )
    for name, info in here.items():
        if there[name].shape != info.shape:
            raise CheckpointMismatch(
                f"tensor {shorten(repr(name))}: {first.name} changes one of shape {list(info.shape)}, "
                f"{other.name} of {list(there[name].shape)}: their bases differ; leave one of them out",
                tensor=name,
            )
        if (name in first.whole) != (name in other.whole):
            whole, factored = (first, other) if name in first.whole else (other, first)
            raise CheckpointMismatch(
                f"tensor {shorten(repr(name))}: {whole.name} holds it whole (modules_to_save), "
                f"{factored.name} factors of it, so they are not of one run; leave one of them out",
                tensor=name,
            )


def _base_of(config: AdapterConfig) -> str:
    revision = "" if config.base_revision is None else f" at revision {shorten(repr(config.base_revision))}"
    return f"{shorten(repr(config.base))}{revision}"


def _wider(first: str, second: str) -> str:
    if first == second:
        return first
    return "F64" if "F64" in (first, second) else "F32"
