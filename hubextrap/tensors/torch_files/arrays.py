"""Tensors as torch's pickles name them: a storage in the archive, and how the tensor lies in it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.headers import DTYPES, ELEMENT_LIMIT
from hubextrap.tensors.pieces import StoredPiece, cover_problem
from hubextrap.tensors.torch_files.allowed import OTHER_STORAGES, STORAGES, TORCH_DTYPES
from hubextrap.tensors.torch_files.pickles import Made, Name, Persistent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.tensors.torch_files.archive import Archive

PIECES = 65_536
"""Stretches that one tensor of one rank may lie in."""
_DIMENSIONS = 64

Runs = tuple[tuple[int, int], ...]
"""Start and length of each run of indices along one dimension of a whole tensor, in the order in which a part
of the tensor holds them."""


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor in an archive."""

    file: str
    dtype: str
    """safetensors name."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as torch counts them."""
    offset: int
    """Of its first element in the file, in bytes."""


def are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a tuple or list of sizes, whose product is below ``ELEMENT_LIMIT``."""
    if not isinstance(value, (tuple, list)) or len(value) > _DIMENSIONS:
        return False
    if not all(type(size) is int and 0 <= size < ELEMENT_LIMIT for size in value):
        return False
    return math.prod([max(int(size), 1) for size in value]) < ELEMENT_LIMIT


def dtype_of(value: object, where: str, file: str, tensor: str) -> str:
    """The safetensors name of a torch dtype.

    Raises:
        UnsupportedCheckpoint: it has none, as dtypes of quantised weights.
        CorruptFile: it is no dtype.
    """
    if type(value) is Name and value.module == "torch":
        if value.name in TORCH_DTYPES:
            return TORCH_DTYPES[value.name]
        raise _other_dtype(value.name, where, file, tensor)
    raise corrupt(where, file, tensor, "its dtype is none")


def _other_dtype(name: str, where: str, file: str, tensor: str) -> UnsupportedCheckpoint:
    what = f"tensor {shorten(repr(tensor))} is torch.{name}, which is not combined"
    remedy = "cast it to bfloat16 or float32 and save the checkpoint again"
    return UnsupportedCheckpoint(f"{where}: {what}; {remedy}", file=file, tensor=tensor)


def corrupt(where: str, file: str, tensor: str, what: str) -> CorruptFile:
    """The error for a tensor that is not what it has to be."""
    said = f"{where}: tensor {shorten(repr(tensor))}: {what}; copy or download the file again"
    return CorruptFile(said, file=file, tensor=tensor)


def made_by(value: object, *names: str) -> TypeGuard[Made]:
    """Whether it would have been made by a class or function of one of these names."""
    return type(value) is Made and value.by.name in names


def array_of(value: Any, archive: Archive, tensor: str) -> Array:
    """Where a tensor's elements lie.

    Raises:
        CorruptFile: it reaches beyond its storage, or is no tensor.
        UnsupportedCheckpoint: a dtype or a form that is not read.
    """
    where, file = archive.where, archive.file
    while made_by(value, "_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter", "Buffer"):
        value = value.args[0] if value.args else None
    if (
        not made_by(value, "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
        or len(value.args) < 4
    ):
        raise corrupt(where, file, tensor, "it is no tensor as torch saves them")
    storage, first, shape, strides, *rest = value.args
    third = value.by.name == "_rebuild_tensor_v3"
    if any(type(one) is dict and one for one in rest[3 if third else 2 :]):
        what = f"tensor {shorten(repr(tensor))} is a conjugate or negative view, which is not read"
        raise UnsupportedCheckpoint(f"{where}: {what}; save it with .clone()", file=file, tensor=tensor)
    if type(storage) is not Persistent or type(storage.id) is not tuple or len(storage.id) != 5:
        raise corrupt(where, file, tensor, "its storage is none")
    _, kind, key, _, numel = storage.id
    if type(kind) is not Name or type(key) is not str or type(numel) is not int:
        raise corrupt(where, file, tensor, "its storage is none")
    if third and len(rest) >= 3:
        dtype, unit = dtype_of(rest[2], where, file, tensor), 1
    elif kind.name in STORAGES:
        dtype = STORAGES[kind.name]
        unit = DTYPES[dtype].itemsize
    elif kind.name in OTHER_STORAGES:
        raise _other_dtype(OTHER_STORAGES[kind.name], where, file, tensor)
    else:
        raise corrupt(where, file, tensor, f"its storage is a {shorten(str(kind))}")
    itemsize = DTYPES[dtype].itemsize
    record = archive.record(f"data/{key}")
    if not (are_sizes(shape) and are_sizes(strides) and len(shape) == len(strides)) or type(first) is not int:
        raise corrupt(where, file, tensor, "its shape is none")
    last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if record.size != numel * unit or first < 0:
        raise corrupt(where, file, tensor, "its storage has another size than it says")
    if math.prod(shape) and (last + 1) * itemsize > record.size:
        raise corrupt(where, file, tensor, "it reaches beyond its storage")
    return Array(file, dtype, tuple(shape), tuple(strides), record.offset + first * itemsize)


def whole(shape: Sequence[int], starts: Sequence[int] | None = None) -> tuple[Runs, ...]:
    """The runs of a part that is a block: its shape, and where it begins in the whole tensor."""
    return tuple(((start, size),) for start, size in zip(starts or [0] * len(shape), shape, strict=True))


def stored_pieces(array: Array, runs: Sequence[Runs], where: str, tensor: str) -> list[StoredPiece]:
    """The byte ranges of a part of a tensor, each a block of it in row-major order.

    Args:
        runs: which indices of the whole tensor it holds along each dimension; their lengths add up to its
            shape.

    Raises:
        UnsupportedCheckpoint: it lies in more stretches than ``PIECES``.
    """
    shape, strides, rank = array.shape, array.strides, len(array.shape)
    if not math.prod(shape):
        return []
    inner, expected = rank, 1
    while inner and (shape[inner - 1] == 1 or strides[inner - 1] == expected):
        inner -= 1
        expected *= shape[inner]
        if len(runs[inner]) > 1:
            break
    outer = math.prod(shape[:inner])
    if outer * (len(runs[inner]) if inner < rank else 1) > PIECES:
        what = f"tensor {shorten(repr(tensor))} does not lie row by row: it is a transposed or strided view"
        raise UnsupportedCheckpoint(
            f"{where}: {what}; save it with .contiguous()", file=array.file, tensor=tensor
        )
    itemsize = DTYPES[array.dtype].itemsize
    places = [[start + i for start, length in one for i in range(length)] for one in runs[:inner]]
    tail = shape[inner + 1 :]
    pieces = []
    for index in itertools.product(*map(range, shape[:inner])):
        offset = array.offset + itemsize * sum(i * s for i, s in zip(index, strides, strict=False))
        starts = tuple(place[i] for place, i in zip(places, index, strict=True))
        if inner == rank:
            pieces.append(StoredPiece(array.file, offset, starts, (1,) * rank))
            continue
        rest = tuple(one[0][0] for one in runs[inner + 1 :])
        for start, length in runs[inner]:
            block = (*[1] * inner, length, *tail)
            pieces.append(StoredPiece(array.file, offset, (*starts, start, *rest), block))
            offset += itemsize * length * math.prod(tail)
    return pieces


def covers(shape: Sequence[int], parts: Sequence[tuple[Runs, ...]]) -> bool:
    """Whether parts cover a tensor of this shape, each element once; see `cover_problem`."""
    blocks = [
        (tuple(start for start, _ in box), tuple(length for _, length in box))
        for part in parts
        for box in itertools.product(*part)
    ]
    return cover_problem(shape, blocks) is None
