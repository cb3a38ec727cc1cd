"""Sharded safetensors: each rank's part of every tensor, as torch's HuggingFaceStorageWriter leaves them.

``shard-R-model-K-of-N.safetensors`` holds what rank R has of the tensors that a whole model keeps in its file
K; ``DCP_SHARDING_INFO`` in the header says where in the tensors the parts belong
(torch/distributed/checkpoint, hf_storage.py and _hf_utils.py; NeMo's trainers write the same).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_json, shorten
from hubextrap.tensors.configuration import config_object
from hubextrap.tensors.headers import ELEMENT_LIMIT, HEADER_LIMIT
from hubextrap.tensors.pieces import Pieces, StoredPiece, StoredTensor, cover_problem
from hubextrap.tensors.tied import INPUT_EMBEDDINGS, ends_with
from hubextrap.tensors.weights import read_shards
from hubextrap.trajectory.weights import INNER_FOLDERS, SHARDED_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import ShardInfo, TensorInfo

_INFO = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"
_DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class _Held:
    """What the files hold of a tensor."""

    dtype: str
    first: str
    """The file that says so."""
    shape: list[int]
    """So large that all parts fit."""
    model_file: int
    parts: dict[tuple[tuple[int, ...], tuple[int, ...]], StoredPiece] = field(default_factory=dict)
    """By place and shape: what several ranks hold counts once."""


def read_sharded(source: Source, files: Sequence[str]) -> list[StoredTensor]:
    """The tensors of sharded safetensors: by the file of a whole model that they would lie in, then by name.

    Args:
        files: those of all ranks.

    Raises:
        CorruptFile: a file is missing or broken, or two contradict each other; names the file and the tensor.
        UnsupportedCheckpoint: a dtype that only quantised weights have.
        SourceError: bytes could not be read.
    """
    numbers = _checked_names(source.name, files)
    held: dict[str, _Held] = {}
    for shard in read_shards([(source, file) for file in files]):
        offsets = _offsets(shard, source.name)
        for info in shard.tensors:
            _add(held, info, offsets, numbers[shard.file][1], source.name)
    for name, one in held.items():
        blocks = [(piece.starts, piece.shape) for piece in one.parts.values()]
        if problem := cover_problem(one.shape, blocks):
            where = f"{source.name}/{one.first}: tensor {shorten(repr(name))}"
            raise CorruptFile(
                f"{where}: {problem} of the {len(files)} files; the file of a rank is missing or of another "
                "step: copy all of them again",
                file=one.first,
                tensor=name,
            )
    _check_against_config(source, held)
    ordered = sorted(held.items(), key=lambda item: (item[1].model_file, _natural(item[0])))
    return [
        StoredTensor(name, Pieces(one.dtype, tuple(one.shape), tuple(one.parts.values())))
        for name, one in ordered
    ]


def _checked_names(checkpoint: str, files: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Rank, file of a whole model, and their number, as each name has it.

    Raises:
        CorruptFile: by the names alone, a file is missing or of another run.
    """
    numbers = {
        file: (int(match[1]), int(match[2]), int(match[3]))
        for file in files
        if (match := SHARDED_FILE.fullmatch(file.rpartition("/")[2]))
    }
    counts = {count: file for file, (_, _, count) in numbers.items()}
    if len(counts) != 1:
        several = " and ".join(sorted(counts.values())[:2])
        raise CorruptFile(f"{checkpoint}: {several} are of two runs; keep the files of one")
    ((count, example),) = counts.items()
    for which, there in (
        (0, {rank for rank, _, _ in numbers.values()}),
        (1, {k for _, k, _ in numbers.values()}),
    ):
        wanted = max(there) if which == 0 else count
        missing = next((number for number in range(1, wanted + 1) if number not in there), None)
        if missing is not None or len(there) > wanted or min(there) < 1:
            what = "shard" if which == 0 else "model"
            named = re.sub(rf"{what}-\d+", f"{what}-{missing or max(there):05d}", example, count=1)
            problem = f"no file {named} is there" if missing else f"{named} has a number that none can have"
            raise CorruptFile(f"{checkpoint}: {problem}; copy the files of all ranks again", file=named)
    return numbers


def _offsets(shard: ShardInfo, checkpoint: str) -> Mapping[str, tuple[int, ...]]:
    """Where each part begins in its tensor; by torch's reader at its start where nothing is said at all."""
    text = shard.metadata.get(_INFO)
    if text is None:
        return {info.name: (0,) * len(info.shape) for info in shard.tensors}
    where = f"{checkpoint}/{shard.file}"
    stated = parse_json(text, f"{where}: its {_INFO}", file=shard.file, limit=HEADER_LIMIT)
    offsets = {}
    for info in shard.tensors:
        entry = stated.get(info.name) if isinstance(stated, dict) else None
        found = entry.get(_OFFSETS) if isinstance(entry, dict) else None
        if not _are_offsets(found) or len(found) != len(info.shape):
            raise CorruptFile(
                f"{where}: its {_INFO} says {shorten(repr(found))} of where its part of tensor "
                f"{shorten(repr(info.name))}, {list(info.shape)}, begins; copy or save the file again",
                file=shard.file,
                tensor=info.name,
            )
        offsets[info.name] = tuple(found)
    return offsets


def _are_offsets(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < ELEMENT_LIMIT for one in value)


def _add(
    held: dict[str, _Held],
    info: TensorInfo,
    offsets: Mapping[str, tuple[int, ...]],
    model_file: int,
    checkpoint: str,
) -> None:
    starts = offsets[info.name]
    one = held.get(info.name)
    if one is None:
        one = held[info.name] = _Held(info.dtype, info.file, [0] * len(info.shape), model_file)
    if (one.dtype, len(one.shape)) != (info.dtype, len(info.shape)):
        mine, theirs = f"{info.dtype} {list(info.shape)}", f"{one.dtype} {list(one.shape)}"
        raise CorruptFile(
            f"{checkpoint}/{info.file}: its part of tensor {shorten(repr(info.name))} is {mine}, and with "
            f"that in {one.first} it is {theirs}; copy the files of one step again",
            file=info.file,
            tensor=info.name,
        )
    one.shape = [
        max(size, first + extent) for size, first, extent in zip(one.shape, starts, info.shape, strict=True)
    ]
    if info.nbytes:
        one.parts.setdefault((starts, info.shape), StoredPiece(info.file, info.offset, starts, info.shape))


def _check_against_config(source: Source, held: Mapping[str, _Held]) -> None:
    """Where the last ranks' files are missing nothing in the others says so: all tensors just end earlier.
    The configuration knows how many rows the embeddings have.

    Raises:
        CorruptFile: there are fewer. SourceError: config.json could not be read.
    """
    found = [(name, one) for name, one in held.items() if ends_with(name, INPUT_EMBEDDINGS)]
    if len(found) != 1:
        return
    for place in ("config.json", *(f"{folder}/config.json" for folder in INNER_FOLDERS)):
        if place in source.files():
            break
    else:
        return
    ((name, one),) = found
    config = config_object(source.read_file(place), source.name)
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size")
    if type(rows) is int and one.shape and rows > one.shape[0]:
        raise CorruptFile(
            f"{source.name}: its files hold {one.shape[0]} rows of tensor {shorten(repr(name))}, and {place} "
            f"says vocab_size: {rows}; the last ranks' files are missing: copy those of all nodes here",
            file=place,
            tensor=name,
        )


def _natural(name: str) -> str:
    """By what names are sorted so that layer 10 comes behind layer 2."""
    return _DIGITS.sub(lambda match: match[0].zfill(12), name)
