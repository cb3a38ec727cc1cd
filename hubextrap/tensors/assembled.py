"""Checkpoints that are read in another form than they are stored in, as safetensors files that lie nowhere.

What is above sees shards and byte ranges of them, as of any checkpoint. An `Assembly` is plain data: it says
how each tensor is put together, so that a worker elsewhere reads the same bytes without a look at headers.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from hubextrap.digests import sha256_of_json
from hubextrap.errors import SourceError
from hubextrap.tensors.dequantised import Fp8Blocks, Mxfp4
from hubextrap.tensors.gathering import gather
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo, Source, check_range, readable
from hubextrap.tensors.kept import KEPT, KeepingSource
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.tensors.pieces import Pieces
from hubextrap.tensors.virtual import fill_bytes, ranges_in
from hubextrap.trajectory.weights import INDEX, SINGLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from hubextrap.tensors.gathering import Wanted
    from hubextrap.tensors.virtual import Bytes

SHARD_SIZE = 5 * 10**9
"""Bytes of the files into which a checkpoint in pieces is cut, as transformers cut models for years."""
HELD_PIECE = 350
"""Bytes of a block of a tensor in memory."""
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
"""In which the safetensors library writes dtypes; tensors of one dtype go by name."""


class Parts(Protocol):
    """How one tensor is put together; a frozen dataclass of plain data."""

    @property
    def dtype(self) -> str:
        """What it is read as, by safetensors name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def writes(self) -> str:
        """What it is written as, where that is not its dtype; else ""."""

    @property
    def packed(self) -> int:
        """Bytes that it takes in the files, where these are not those that it is read as; else 0."""

    @property
    def held(self) -> int:
        """Bytes that reading it keeps for a while."""

    @property
    def files(self) -> frozenset[str]:
        """Those that hold some of it."""

    def fill(self, source: KeepingSource, start: int, out: Bytes) -> None:
        """Write the elements from ``start`` on that ``out`` has room for; any range, in any thread.

        Raises:
            SourceError: what they are made from could not be read.
        """

    def to_json(self) -> dict[str, Any]:
        """What its class's `from_json` takes, once JSON has carried it."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """Files of a checkpoint that lie nowhere, and what they are put together from."""

    shards: tuple[ShardInfo, ...]
    index_file: str | None
    parts: Mapping[str, Parts]
    """By tensor. Shards of the same name as a stored one take its place."""
    hides: tuple[str, ...] = ()
    """Stored files that are not shown any more: what the tensors lie in."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What small files say in this form, by name."""

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, once JSON has carried it."""
        return {
            "index_file": self.index_file,
            "hides": list(self.hides),
            "texts": dict(self.texts),
            "shards": [asdict(shard) for shard in self.shards],
            "parts": {name: parts_as_json(one) for name, one in self.parts.items()},
        }

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Assembly:
        """The assembly that `to_json` was asked of."""
        return cls(
            tuple(_shard_from_json(shard) for shard in stated["shards"]),
            stated["index_file"],
            {name: parts_from_json(one) for name, one in stated["parts"].items()},
            tuple(stated["hides"]),
            dict(stated["texts"]),
        )


Forms: TypeAlias = tuple[tuple[tuple[str, ...], Assembly], ...]
"""Assemblies that a checkpoint is read through, the first over the stored files, each with inner folders."""


class AssembledSource(Source):
    """A checkpoint as its assembly presents it. Thread-safe. Closing it closes the stored one.

    Args:
        stored: where the bytes lie.
        assembly: how they are put together, or what finds that out when it is first needed.
        inner: folders of the stored one whose files are shown as if they lay beside the weights.
    """

    def __init__(
        self, stored: Source, assembly: Assembly | Callable[[], Assembly], inner: Sequence[str] = ()
    ) -> None:
        self.name = stored.name
        self.stored = stored
        self._keeping = KeepingSource(stored)
        self._lock = threading.Lock()
        self._found = assembly if isinstance(assembly, Assembly) else None
        self._find = assembly
        self._files: Mapping[str, tuple[ShardInfo, tuple[TensorInfo, ...]]] | None = None
        self._encoded: Mapping[str, bytes] | None = None
        self.inner = tuple(inner)

    @property
    def assembly(self) -> Assembly:
        """How it is put together.

        Raises:
            HubExtrapError: as what finds that out.
        """
        with self._lock:
            if self._found is None:
                assert callable(self._find)
                self._found = self._find()
            return self._found

    @cached_property
    def layout(self) -> CheckpointLayout:
        """Of the files that lie nowhere, and of all others that hold weights.

        Raises:
            HubExtrapError: as `assembly`.
        """
        parts = self.assembly.parts.values()
        held = KEPT + 3 * max((one.held for one in parts), default=0)
        held += HELD_PIECE * sum(len(one.pieces) for one in parts if isinstance(one, Pieces))
        return CheckpointLayout(self.name, self.assembly.shards, self.assembly.index_file, held=held)

    def files(self) -> Mapping[str, FileInfo]:
        stored, hides = self.stored.files(), self._found.hides if self._found else ()
        shown = {file: stored[where] for file, where in self._places.items() if where not in hides}
        sizes = {file: shard.size for file, (shard, _) in self._made().items()}
        sizes |= {file: len(content) for file, content in self._texts.items()}
        return shown | {file: FileInfo(size) for file, size in sizes.items()}

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        if file in self._texts:
            check_range(len(self._texts[file]), offset, len(buffer), self.name, file)
            buffer[:] = self._texts[file][offset : offset + len(buffer)]
            return
        made = self._made(now=file not in self._places).get(file)
        if made is None and file in self._places:
            self.stored.read(self._places[file], offset, buffer)
            return
        if made is None:
            raise SourceError(f"{self.name}: no file {file!r} in the folder", file=file)
        shard, tensors = made
        view = np.frombuffer(buffer, np.uint8)
        check_range(shard.size, offset, len(view), self.name, file)
        wanted: list[Wanted] = []
        for info, first, out in ranges_in(tensors, offset, view):
            parts, size = self.assembly.parts[info.name], DTYPES[info.dtype].itemsize
            if isinstance(parts, Pieces) and first % size == len(out) % size == 0:
                wanted += parts.wanted(first // size, out)  # those of all tensors together
            else:
                fill_bytes(self, info, first, out)
        gather(self.stored, wanted)

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        if file in self._places and file not in self._made() and file not in self._texts:
            return self.stored.read_file(self._places[file], limit)
        content = bytearray(readable(self.files().get(file), self.name, file, limit).size)
        self.read(file, 0, memoryview(content))
        return bytes(content)

    def fill(self, info: TensorInfo, start: int, out: Bytes) -> None:
        """Write the elements of a tensor from ``start`` on that ``out`` has room for.

        Raises:
            SourceError: what it is put together from could not be read.
        """
        self.assembly.parts[info.name].fill(self._keeping, start, out)

    def origins(self, file: str) -> frozenset[str]:
        """The stored files that a file is put together from, and those that say how; a stored one's own."""
        if file not in self._made(now=True):
            return frozenset({self._places.get(file, file)})
        parts, (_, tensors) = self.assembly.parts, self._made()[file]
        return self._say_how.union(*(parts[info.name].files for info in tensors))

    def close(self) -> None:
        self.stored.close()

    @property
    def _texts(self) -> Mapping[str, bytes]:
        """What small files say in this form; encoded once, as each range that is read asks for them."""
        if self._encoded is None and self._found is not None:
            self._encoded = {file: text.encode() for file, text in self._found.texts.items()}
        return self._encoded or {}

    def _made(self, *, now: bool = False) -> Mapping[str, tuple[ShardInfo, tuple[TensorInfo, ...]]]:
        """The files that lie nowhere, each with its tensors that hold bytes; none before they are known,
        unless that is to be found out ``now``."""
        if self._files is None and (now or self._found):
            self._files = {
                shard.file: (shard, tuple(tensor for tensor in shard.tensors if tensor.nbytes))
                for shard in self.assembly.shards
            }
        return self._files or {}

    @cached_property
    def _say_how(self) -> frozenset[str]:
        """Weight files that hold no weights, such as the metadata of torch's DCP."""
        return frozenset(self.assembly.hides).difference(*(one.files for one in self.assembly.parts.values()))

    @cached_property
    def _places(self) -> Mapping[str, str]:
        """Where each stored file lies, by the name that it is shown under."""
        stored = list(self.stored.files())
        places = {file: file for file in stored}
        for folder in self.inner:
            for file in stored:
                if file.startswith(f"{folder}/"):
                    places.pop(file)
                    places.setdefault(file.removeprefix(f"{folder}/"), file)
        return places


def beneath(source: Source, files: Iterable[str]) -> tuple[Source, tuple[str, ...]]:
    """Where the bytes of a source's files lie: what stores them, and which of its files they are.

    Raises:
        HubExtrapError: as `AssembledSource.assembly`.
    """
    found = tuple(files)
    while isinstance(source, AssembledSource):
        found = tuple(sorted(frozenset[str]().union(*map(source.origins, found))))
        source = source.stored
    return source, found


def forms_of(source: Source) -> Forms:
    """How a source is put together, for `in_forms`; empty where its files are the stored ones.

    Raises:
        HubExtrapError: as `AssembledSource.assembly`.
    """
    found: list[tuple[tuple[str, ...], Assembly]] = []
    while isinstance(source, AssembledSource):
        found.insert(0, (source.inner, source.assembly))
        source = source.stored
    return tuple(found)


def in_forms(stored: Source, forms: Forms) -> Source:
    """The source that `forms_of` was asked of, over the same files."""
    for inner, assembly in forms:
        stored = AssembledSource(stored, assembly, inner)
    return stored


def arranged(tensors: Sequence[tuple[str, Parts]], hides: Collection[str] = ()) -> Assembly:
    """Tensors in files as save_pretrained writes them: one, or several of 5 GB with an index.

    (huggingface_hub, serialization/_base.py: split_state_dict_into_shards_factory.)

    Args:
        tensors: in the order in which they fill the files; inside one they go by dtype and name.
        hides: the stored files that they lie in.
    """
    files: list[list[tuple[str, Parts]]] = []
    filling: list[tuple[str, Parts]] = []
    held = 0
    for one in tensors:
        size = math.prod(one[1].shape) * DTYPES[_written(one[1])].itemsize
        if size > SHARD_SIZE:
            files.append([one])
            continue
        if held + size > SHARD_SIZE:
            files.append(filling)
            filling, held = [], 0
        filling.append(one)
        held += size
    files += [filling] if filling else []
    several = len(files) > 1
    shards = []
    for number, those in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors" if several else SINGLE
        those.sort(key=lambda one: (_ORDER.index(_written(one[1])), one[0]))
        shards.append(shard_of(file, those))
    return Assembly(tuple(shards), INDEX if several else None, dict(tensors), tuple(sorted(hides)))


def shard_of(file: str, tensors: Sequence[tuple[str, Parts]]) -> ShardInfo:
    """A file that lies nowhere, of these tensors in their order."""
    infos, offset = [], 0
    for name, parts in tensors:
        size = _nbytes(parts)
        infos.append(
            TensorInfo(name, parts.dtype, parts.shape, file, offset, size, parts.writes, parts.packed)
        )
        offset += size
    described = [[name, parts_as_json(parts)] for name, parts in tensors]
    return ShardInfo(file, offset, tuple(infos), {"format": "pt"}, sha256_of_json(described))


def _written(parts: Parts) -> str:
    return parts.writes or parts.dtype


def _nbytes(parts: Parts) -> int:
    return math.prod(parts.shape) * DTYPES[parts.dtype].itemsize


def _shard_from_json(stated: Mapping[str, Any]) -> ShardInfo:
    tensors = (TensorInfo(**one | {"shape": tuple(one["shape"])}) for one in stated["tensors"])
    return ShardInfo(**dict(stated) | {"tensors": tuple(tensors)})


def parts_as_json(parts: Parts) -> dict[str, Any]:
    """What `parts_from_json` takes."""
    return {"kind": type(parts).__name__} | parts.to_json()


def parts_from_json(stated: Mapping[str, Any]) -> Parts:
    """How a tensor is put together."""
    return _KINDS[stated["kind"]].from_json(stated)


_KINDS: Mapping[str, type[Pieces | Fp8Blocks | Mxfp4]] = {
    one.__name__: one for one in (Pieces, Fp8Blocks, Mxfp4)
}
