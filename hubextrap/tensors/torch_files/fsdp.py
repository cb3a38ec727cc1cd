"""FSDP shards, as verl and SkyRL leave them: ``model_world_size_W_rank_R.pt``, each rank's own state dict."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.pieces import Pieces, StoredTensor
from hubextrap.tensors.torch_files.archive import Archive, Stretch, read_archive, read_bytes
from hubextrap.tensors.torch_files.arrays import (
    Array,
    Runs,
    are_sizes,
    array_of,
    corrupt,
    covers,
    made_by,
    stored_pieces,
    whole,
)
from hubextrap.tensors.torch_files.meshes import (
    RANKS,
    Mesh,
    Placement,
    mesh_of,
    order_of,
    placements_of,
    runs_of,
    state_of,
)
from hubextrap.tensors.torch_files.pickles import Made, read_pickle
from hubextrap.trajectory.weights import FSDP_FILE

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source

READERS = 8
"""Files read at the same time. Sources bound their requests themselves."""
MANY = 2 * 2**20
"""Bytes of a checkpoint's pickles, of some 6,000 tensors of ranks, above which it is read alone."""
_parsing, _of_many_tensors = threading.Lock(), threading.Lock()
"""One pickle is taken apart at a time: Python does no more, and what comes of it is many times the text.
Checkpoints of experts are hundreds of thousands of tensors of ranks: they are looked at one by one."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank holds of a tensor."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    arrays: tuple[tuple[Array, tuple[Runs, ...]], ...]
    """Its blocks, one but for a ShardedTensor."""
    mesh: Mesh | None = None
    """None: the rank has all of it, or the blocks say themselves where they belong (`sharded`)."""
    placements: tuple[Placement, ...] = ()
    sharded: bool = False


def read_fsdp(source: Source, files: Sequence[str]) -> list[StoredTensor]:
    """The tensors of FSDP shards, in the order of the first rank's state dict.

    Args:
        files: those of all ranks.

    Raises:
        CorruptFile: a rank's file is missing or damaged, or ranks contradict each other.
        UnsupportedCheckpoint: a pickle that holds anything else, a dtype or a placement that is not read.
        SourceError: bytes could not be read.
    """
    ordered = _in_rank_order(source, files)
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-ranks") as pool:
        archives = list(pool.map(partial(_open_rank, source), ordered))
        pickled = sum(archive.record("data.pkl").size for archive in archives)
        with _of_many_tensors if pickled > MANY else nullcontext():
            ranks = list(pool.map(partial(_read_rank, source), archives, range(len(archives))))
            return _joined(source, ordered, ranks)


def _joined(source: Source, ordered: Sequence[str], ranks: Sequence[dict[str, _Part]]) -> list[StoredTensor]:
    """The tensors from what each rank holds of them.

    Raises:
        CorruptFile: ranks contradict each other.
    """
    names = list(ranks[0])
    for file, parts in zip(ordered, ranks, strict=True):
        odd = parts.keys() ^ ranks[0].keys()
        if odd:
            what = f"{ordered[0]} and {file} do not hold the same tensors, e.g. {shorten(repr(min(odd)))}"
            said = f"{source.name}: {what}; copy all ranks' files of one step"
            raise CorruptFile(said, file=file, tensor=min(odd))
    return [
        _assembled(name, [parts[name] for parts in ranks], f"{source.name}/{ordered[0]}") for name in names
    ]


def _in_rank_order(source: Source, files: Sequence[str]) -> list[str]:
    """The files by rank.

    Raises:
        CorruptFile: of one world size, one is missing.
    """
    found: dict[tuple[int, int], str] = {}
    for file in files:
        match = FSDP_FILE.fullmatch(file.rpartition("/")[2])
        if match is not None:
            found[int(match[1]), int(match[2])] = file
    worlds = sorted({world for world, _ in found})
    if len(worlds) != 1 or not 0 < worlds[0] <= RANKS:
        what = (
            f"holds the files of runs on {', '.join(map(str, worlds))} ranks" if worlds else "holds no shards"
        )
        raise CorruptFile(f"{source.name}: {what}; keep those of one run only")
    world = worlds[0]
    for rank in range(world):
        if (world, rank) not in found:
            missing = files[0].rpartition("/")[0] + "/" if "/" in files[0] else ""
            missing += f"model_world_size_{world}_rank_{rank}.pt"
            what = f"{missing} is missing, and with it a part of each tensor"
            raise CorruptFile(f"{source.name}: {what}; copy all {world} ranks' files", file=missing)
    return [found[world, rank] for rank in range(world)]


def _open_rank(source: Source, file: str) -> Archive:
    where = f"{source.name}/{file}"
    archive = read_archive(source, Stretch(file, where, 0, source.files()[file].size))
    if "byteorder" in archive.records and archive.records["byteorder"].size == len("big"):
        raise UnsupportedCheckpoint(
            f"{where}: its numbers are big-endian; save it on another machine", file=file
        )
    return archive


def _read_rank(source: Source, archive: Archive, rank: int) -> dict[str, _Part]:
    """What a rank's file holds, by tensor."""
    where, file, record = archive.where, archive.file, archive.record("data.pkl")
    data = read_bytes(source, file, record.offset, record.size)
    with _parsing:
        return _parts(source, archive, rank, read_pickle(data, where, file))


def _parts(source: Source, archive: Archive, rank: int, state: Any) -> dict[str, _Part]:
    """The tensors in a rank's pickle."""
    where, file = archive.where, archive.file
    if type(state) is not dict or not state:
        raise UnsupportedCheckpoint(f"{where}: holds no state dict of a model", file=file)
    known: dict[int, list[int]] = {}

    def numbers(array: Array) -> list[int]:
        if array.offset not in known:
            known[array.offset] = _numbers(source, array, archive)
        return known[array.offset]

    reader = _RankReader(archive, rank, numbers)
    return {
        name: reader.part(name, value) for name, value in state.items() if _is_weight(name, value, archive)
    }


def _is_weight(name: Any, value: Any, archive: Archive) -> bool:
    """Whether an entry of a state dict is a tensor; modules' own extra state is none.

    Raises:
        UnsupportedCheckpoint: it is neither.
    """
    if type(value) is Made and value.by.module.startswith("torch"):
        return type(name) is str
    if value is None or type(value) in (bool, int, float, str, bytes) or made_by(value, "BytesIO", "encode"):
        return False
    what = f"its entry {shorten(repr(name if type(name) is str else type(name)))} is no tensor"
    raise UnsupportedCheckpoint(
        f"{archive.where}: {what}; save the model's own state dict", file=archive.file
    )


def _numbers(source: Source, array: Array, archive: Archive) -> list[int]:
    count = math.prod(array.shape)
    if array.dtype not in ("I32", "I64") or count > RANKS or _whole_strides(array.shape) != array.strides:
        raise corrupt(archive.where, archive.file, "", "its mesh of ranks is none")
    width = 4 if array.dtype == "I32" else 8
    data = read_bytes(source, array.file, array.offset, count * width)
    return [int(one) for one in np.frombuffer(data, f"<i{width}")]


def _whole_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Those of a tensor that lies row by row."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


class _RankReader:
    """Makes parts of the entries of one rank's state dict."""

    def __init__(self, archive: Archive, rank: int, numbers: Any) -> None:
        self._archive = archive
        self._rank = rank
        self._numbers = numbers
        self._meshes: dict[int, Mesh] = {}

    def part(self, name: str, value: Made) -> _Part:
        """What the rank holds of one tensor."""
        if not made_by(value, "_rebuild_from_type_v2"):
            array = array_of(value, self._archive, name)
            return _Part(array.shape, ((array, whole(array.shape)),))
        function, kind, args, state = (*value.args, None, None, None, None)[:4]
        wrapped = Made(function, args, state)
        kind_name = getattr(kind, "name", "")
        if kind_name in ("Parameter", "Buffer"):
            return self.part(name, Made(function, args))
        if kind_name == "DTensor":
            return self._of_dtensor(name, wrapped)
        if kind_name == "ShardedTensor":
            return self._of_sharded(name, state)
        raise UnsupportedCheckpoint(
            f"{self._archive.where}: tensor {shorten(repr(name))} is a {shorten(kind_name)}, which is not "
            "read; save the weights as plain tensors",
            file=self._archive.file,
            tensor=name,
        )

    def _problem(self, name: str, what: str) -> CorruptFile:
        return corrupt(self._archive.where, self._archive.file, name, what)

    def _of_dtensor(self, name: str, value: Made) -> _Part:
        state = state_of(value)
        spec = state.get("_spec")
        array = array_of(state.get("_local_tensor"), self._archive, name)
        known = state_of(spec) if type(spec) is Made else {}
        meta, device_mesh = known.get("tensor_meta"), known.get("mesh")
        shape = meta.args[0] if made_by(meta, "TensorMeta") and meta.args else None
        if not are_sizes(shape):
            raise self._problem(name, "its shape is not said")
        if id(device_mesh) not in self._meshes:
            self._meshes[id(device_mesh)] = mesh_of(device_mesh, self._rank, self._archive, self._numbers)
        mesh = self._meshes[id(device_mesh)]
        placements = placements_of(known.get("placements"), self._archive, name)
        order = order_of(known.get("shard_order"), len(mesh.shape))
        if order is None or len(placements) != len(mesh.shape):
            raise self._problem(name, "its placements are none")
        runs = runs_of(tuple(shape), mesh, placements, mesh.coordinate(self._rank), order)
        if runs is None:
            raise UnsupportedCheckpoint(
                f"{self._archive.where}: tensor {shorten(repr(name))} is sharded unevenly in a way that is "
                "not read; save the whole model (verl: python -m verl.model_merger merge --backend fsdp "
                "--local_dir FOLDER --target_dir OUTPUT)",
                file=self._archive.file,
                tensor=name,
            )
        held = tuple(sum(length for _, length in one) for one in runs)
        if held != array.shape and (all(held) or all(array.shape)):
            raise self._problem(name, f"rank {self._rank} holds another part than its placements say")
        return _Part(tuple(shape), ((array, runs),), mesh, tuple(placements))

    def _of_sharded(self, name: str, state: Any) -> _Part:
        """FSDP1's: the state is (shards, metadata, process group, sharding, rrefs)."""
        parts = state if type(state) is tuple and len(state) == 5 else (None, None)
        metadata = state_of(parts[1]) if type(parts[1]) is Made else {}
        size = metadata.get("size")
        if type(parts[0]) is not list or not are_sizes(size):
            raise self._problem(name, "it is no ShardedTensor")
        arrays = []
        for shard in parts[0]:
            known = state_of(shard) if type(shard) is Made else {}
            place = known.get("metadata")
            offsets = state_of(place).get("shard_offsets") if type(place) is Made else None
            array = array_of(known.get("tensor"), self._archive, name)
            if not are_sizes(offsets) or len(offsets) != len(size) or len(array.shape) != len(size):
                raise self._problem(name, "a shard of it has no place")
            arrays.append((array, whole(array.shape, offsets)))
        return _Part(tuple(size), tuple(arrays), sharded=True)


def _assembled(name: str, parts: list[_Part], where: str) -> StoredTensor:
    """One tensor from what the ranks hold of it, replicas once."""
    first = parts[0]
    file = first.arrays[0][0].file if first.arrays else None
    dtypes = {array.dtype for part in parts for array, _ in part.arrays}
    kinds = {(part.shape, part.mesh is None, part.sharded, part.placements) for part in parts}
    if len(kinds) != 1 or len(dtypes) != 1:
        raise _contradiction(name, where, file)
    if first.sharded:
        chosen = parts
    elif first.mesh is None:
        chosen = parts[:1]
    else:
        chosen = _one_of_each(name, parts, where)
    held = [one for part in chosen for one in part.arrays]
    if not covers(first.shape, [runs for _, runs in held if all(runs)]):
        raise _contradiction(name, where, file)
    pieces = [piece for array, runs in held for piece in stored_pieces(array, runs, where, name)]
    return StoredTensor(name, Pieces(dtypes.pop(), first.shape, tuple(pieces)))


def _one_of_each(name: str, parts: list[_Part], where: str) -> list[_Part]:
    """The ranks of the first rank's mesh that hold different parts: of dimensions that replicate, the first.
    Meshes of other ranks, where there are several, hold the same once more."""
    mesh = parts[0].mesh
    assert mesh is not None
    chosen = []
    for rank in mesh.ranks:
        if rank >= len(parts) or parts[rank].mesh != mesh:
            raise _contradiction(name, where, None)
        coordinate = mesh.coordinate(rank)
        if all(p.dim is not None or one == 0 for p, one in zip(parts[0].placements, coordinate, strict=True)):
            chosen.append(parts[rank])
    return chosen


def _contradiction(name: str, where: str, file: str | None) -> CorruptFile:
    what = f"the ranks' files contradict each other about tensor {shorten(repr(name))}"
    return CorruptFile(f"{where}: {what}; copy all ranks' files of one step", file=file, tensor=name)
