"""torch's distributed checkpoints (DCP): ``.metadata`` says what lies where in ``*.distcp``.

Each part is a file of torch.save by itself, in a stretch of a larger file (torch.distributed.checkpoint,
metadata.py and filesystem.py). torchtitan, prime-rl, slime and accelerate's FSDP write them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.pieces import Pieces, StoredTensor
from hubextrap.tensors.ranges import coalesce
from hubextrap.tensors.torch_files.archive import Stretch, directory_place, parse_archive, read_bytes
from hubextrap.tensors.torch_files.arrays import (
    Array,
    are_sizes,
    array_of,
    corrupt,
    covers,
    dtype_of,
    made_by,
    stored_pieces,
    whole,
)
from hubextrap.tensors.torch_files.dcp_names import model_names
from hubextrap.tensors.torch_files.meshes import state_of
from hubextrap.tensors.torch_files.pickles import BYTES, Made, read_pickle
from hubextrap.trajectory.weights import DCP_METADATA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import Source

READERS = 8
"""Stretches read at the same time. Sources bound their requests themselves."""
HEAD, TAIL = 512, 1024
"""Bytes read at the ends of each part: its pickle and its directory, which take some 300 and 600."""
_GAP, _SPAN = 256 * 1024, 8 * 2**20


@dataclass(frozen=True, slots=True)
class _Blob:
    """One part of a tensor."""

    tensor: str
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the metadata says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    blobs: tuple[_Blob, ...]


def read_dcp(source: Source, files: Sequence[str]) -> list[StoredTensor]:
    """The model's tensors of a distributed checkpoint, in the order in which its metadata lists them.

    Args:
        files: its ``.metadata`` and ``*.distcp``.

    Raises:
        CorruptFile: a file is missing or damaged, or they contradict each other.
        UnsupportedCheckpoint: a pickle that holds anything else; a checkpoint of Megatron, a compressed one,
            or one without a model; a dtype that is not read.
        SourceError: bytes could not be read.
    """
    metadata = next((file for file in files if file.rpartition("/")[2] == DCP_METADATA), None)
    if metadata is None:
        what = f"{DCP_METADATA} is missing, without which nobody knows what {shorten(repr(files[0]))} holds"
        raise CorruptFile(f"{source.name}: {what}; copy the whole folder again", file=DCP_METADATA)
    where = f"{source.name}/{metadata}"
    root = read_pickle(source.read_file(metadata, BYTES), where, metadata)
    if not made_by(root, "Metadata"):
        raise CorruptFile(f"{where}: holds no metadata of a distributed checkpoint", file=metadata)
    stated = _tensors(state_of(root), source, metadata)
    blobs = [blob for one in stated.values() for blob in one.blobs]
    arrays = iter(_arrays(source, blobs))
    tensors = []
    for name, one in stated.items():
        held = []
        for blob in one.blobs:
            array = next(arrays)
            if array.dtype != one.dtype or array.shape != blob.shape:
                raise corrupt(where, blob.stretch.file, name, "a part of it is not what the metadata says")
            held.append((array, whole(array.shape, blob.starts)))
        if not covers(one.shape, [runs for _, runs in held]):
            raise corrupt(where, metadata, name, "its parts do not cover it")
        pieces = [piece for array, runs in held for piece in stored_pieces(array, runs, where, name)]
        tensors.append(StoredTensor(name, Pieces(one.dtype, one.shape, tuple(pieces))))
    return tensors


def _tensors(root: Mapping[str, Any], source: Source, metadata: str) -> dict[str, _Stated]:
    """What the metadata says of each tensor of the model, by its name there."""
    where = f"{source.name}/{metadata}"
    entries, places = root.get("state_dict_metadata"), root.get("storage_data")
    if type(entries) is not dict or type(places) is not dict:
        raise CorruptFile(f"{where}: lists no tensors; copy the file again", file=metadata)
    keys = [key for key, entry in entries.items() if made_by(entry, "TensorStorageMetadata")]
    names = model_names([str(key) for key in keys], root.get("planner_data"), where, metadata)
    stored: dict[str, dict[tuple[int, ...], Any]] = {}
    for index, info in places.items():
        known = state_of(index) if made_by(index, "MetadataIndex") else {}
        offset = known.get("offset")
        if type(known.get("fqn")) is str and are_sizes(offset):
            stored.setdefault(known["fqn"], {})[tuple(offset)] = info
    stated = {}
    for key, name in names.items():
        known = state_of(entries[key])
        shape, chunks, properties = (known.get(one) for one in ("size", "chunks", "properties"))
        if not are_sizes(shape) or type(chunks) is not list:
            raise corrupt(where, metadata, name, "its metadata are none")
        dtype = dtype_of(_dtype_in(properties), where, metadata, name)
        blobs = []
        for chunk in chunks:
            part = state_of(chunk) if made_by(chunk, "ChunkStorageMetadata") else {}
            starts, sizes = part.get("offsets"), part.get("sizes")
            if not (are_sizes(starts) and are_sizes(sizes) and len(starts) == len(sizes) == len(shape)):
                raise corrupt(where, metadata, name, "a part of it has no place")
            if math.prod(sizes):
                info = stored.get(key, {}).get(tuple(starts))
                stretch = _stretch(info, source, metadata, name)
                blobs.append(_Blob(name, tuple(starts), tuple(sizes), stretch))
        stated[name] = _Stated(dtype, tuple(shape), tuple(blobs))
    return stated


def _dtype_in(properties: object) -> object:
    """The first of a TensorProperties' state: a tuple, or attributes."""
    if type(properties) is not Made:
        return None
    state = properties.state
    if type(state) is tuple and state:
        return state[0]
    return state_of(properties).get("dtype")


def _stretch(info: object, source: Source, metadata: str, tensor: str) -> Stretch:
    """Where a part lies: in a file of the folder, whose name is plain."""
    where = f"{source.name}/{metadata}"
    known = state_of(info) if made_by(info, "_StorageInfo") else {}
    name, offset, length = (known.get(one) for one in ("relative_path", "offset", "length"))
    if type(name) is not str or type(offset) is not int or type(length) is not int:
        raise corrupt(where, metadata, tensor, "a part of it is stored nowhere")
    if known.get("transform_descriptors"):
        what = f"tensor {shorten(repr(tensor))} is compressed or encrypted"
        remedy = "save it without transforms (extensions) of the storage writer"
        raise UnsupportedCheckpoint(f"{where}: {what}; {remedy}", file=metadata, tensor=tensor)
    file = metadata[: -len(DCP_METADATA)] + name
    if "/" in name or "\\" in name or name in ("", ".", "..") or file not in source.files():
        what = f"a part of it lies in {shorten(repr(name))}, which is no file of the folder"
        raise corrupt(where, metadata, tensor, what)
    if offset < 0 or length <= 0 or offset + length > source.files()[file].size:
        raise corrupt(where, file, tensor, f"a part of it lies beyond the end of {name}")
    return Stretch(file, f"{source.name}/{file}", offset, length)


def _arrays(source: Source, blobs: Sequence[_Blob]) -> list[Array]:
    """What each part holds, by its first and its last bytes: those of neighbours are read together."""
    ranges: dict[str, list[tuple[int, int, int]]] = {}
    for index, blob in enumerate(blobs):
        start, size = blob.stretch.start, blob.stretch.size
        head, tail = min(HEAD, size), min(TAIL, size)
        ranges.setdefault(blob.stretch.file, []).extend(
            [(start, head, 2 * index), (start + size - tail, tail, 2 * index + 1)]
        )
    ends: list[bytes] = [b""] * (2 * len(blobs))
    jobs = [
        (file, span.start, span.stop, [wanted[member] for member in span.members])
        for file, wanted in ranges.items()
        for span in coalesce([(start, length) for start, length, _ in wanted], _GAP, _SPAN)
    ]

    def read(job: tuple[str, int, int, list[tuple[int, int, int]]]) -> None:
        file, start, stop, members = job
        data = read_bytes(source, file, start, stop - start)
        for first, length, place in members:
            ends[place] = data[first - start : first - start + length]

    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-parts") as pool:
        list(pool.map(read, jobs))
    return [_array(source, blob, *ends[2 * i : 2 * i + 2]) for i, blob in enumerate(blobs)]


def _array(source: Source, blob: _Blob, head: bytes, tail: bytes) -> Array:
    stretch = blob.stretch
    first, _ = directory_place(tail, stretch)
    if first < stretch.size - len(tail):
        tail = stretch.read(source, first, stretch.size - first)
    archive = parse_archive(tail, stretch)
    record = archive.record("data.pkl")
    begin = record.offset - stretch.start
    data = head[begin : begin + record.size]
    if len(data) < record.size:
        data = stretch.read(source, begin, record.size)
    return array_of(read_pickle(data, stretch.where, stretch.file), archive, blob.tensor)
