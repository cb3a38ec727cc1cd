"""The safetensors layout of a checkpoint: which tensor lies where, known from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies."""

    name: str
    dtype: str
    """safetensors name, e.g. BF16."""
    shape: tuple[int, ...]
    file: str
    """Shard, relative to the checkpoint's folder."""
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int
    writes: str = ""
    """The dtype that it is written in, where that is not its own: it is dequantised as it is read."""
    packed: int = 0
    """Bytes that it takes where it is stored, where it is dequantised."""

    @property
    def written(self) -> str:
        """The dtype that it is written in, if nobody asks for another."""
        return self.writes or self.dtype


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One safetensors file, tensors in offset order."""

    file: str
    size: int
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    header_sha256: str = ""
    """Of the bytes before the first tensor."""

    @property
    def header_size(self) -> int:
        """Bytes before the first tensor."""
        return self.tensors[0].offset if self.tensors else self.size


@dataclass(frozen=True)
class CheckpointLayout:
    """All shards of a checkpoint."""

    name: str
    """What messages call the checkpoint."""
    shards: tuple[ShardInfo, ...]
    index_file: str | None
    """The index JSON's name when the checkpoint is sharded."""
    left_out: frozenset[str] = frozenset()
    """Tensors of the shards that take no part."""
    copied: frozenset[str] = frozenset()
    """Of the last checkpoint: tensors that are taken as they are, whatever others hold."""
    held: int = 0
    """Bytes that its source keeps while its tensors are read."""

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Those that take part."""
        every = (tensor for shard in self.shards for tensor in shard.tensors)
        return {tensor.name: tensor for tensor in every if tensor.name not in self.left_out}

    @property
    def predicted(self) -> dict[str, TensorInfo]:
        """Those that take part and are not just copied."""
        if not self.copied:
            return self.tensors
        return {name: info for name, info in self.tensors.items() if name not in self.copied}


def share_tensors(layouts: Iterable[CheckpointLayout]) -> None:
    """Let layouts whose shards share their tensors share the table of them too."""
    known: dict[tuple[int, ...], dict[str, TensorInfo]] = {}
    for layout in layouts:
        same = tuple(id(shard.tensors) for shard in layout.shards)
        if same not in known:
            known[same] = layout.tensors
        vars(layout)["tensors"] = known[same]


def distinct_tensors(layouts: Iterable[CheckpointLayout]) -> int:
    """How many entries the layouts hold, those that several share counted once."""
    return sum(
        len(held) for held in {id(s.tensors): s.tensors for lay in layouts for s in lay.shards}.values()
    )
