"""Which files of a folder hold the model, and where in them each tensor lies."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hubextrap.digests import sha256_hex
from hubextrap.errors import CheckpointError, CorruptFile, HubExtrapError, UnsupportedCheckpoint
from hubextrap.foreign_data import parse_json, shorten
from hubextrap.foreign_text import own_lines
from hubextrap.progress import SilentProgress
from hubextrap.tensors.assembled import AssembledSource
from hubextrap.tensors.headers import HEADER_LIMIT, header_end, parse_header
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, share_tensors
from hubextrap.trajectory.checkpoint import ADAPTER, Checkpoint
from hubextrap.trajectory.converting import UNUSUAL
from hubextrap.trajectory.weights import ADAPTER_CONFIG, ADAPTER_FILE, INDEX, SINGLE, WHOLE_MODEL, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Source

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

HEAD = 100_000
"""Bytes read at first: most headers are shorter, so that one request per shard is enough."""

READERS = 16
"""Headers read at the same time. Sources bound their requests themselves."""

ALIKE = 3
"""Messages that differ in numbers alone, at most."""
_NUMBER = re.compile(r"\d+")
_WHOLE_IN_ONE = re.compile(r"model-0*1-of-0*1\.safetensors")

T = TypeVar("T")
R = TypeVar("R")


def read_layout(source: Source) -> CheckpointLayout:
    """The layout of the checkpoint in a folder, from its index and its headers; no tensor byte is read.

    Raises:
        UnsupportedCheckpoint: no safetensors weights of a whole model.
        CorruptFile: an index or a header that is wrong, or a file that is missing or cut short.
        SourceError: bytes could not be read.
    """
    return read_layouts([source])[0]


def read_layouts(sources: Sequence[Source], progress: Progress | None = None) -> list[CheckpointLayout]:
    """The layouts of several checkpoints in the order given, all their headers read concurrently.

    Raises:
        HubExtrapError: as ``read_layout``; when several are wrong, one error of the first's class names all.
    """
    parser = _Parser()
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-headers") as pool:
        found = parser.find(pool, sources, progress)
        shards = [
            (source, file)
            for source, one in zip(sources, found, strict=True)
            if isinstance(one, _Found)
            for file in one.shards
        ]
        headers = iter(parser.read(pool, shards, progress))
        layouts = [
            one
            if isinstance(one, CheckpointLayout)
            else CheckpointLayout(
                source.name,
                tuple(next(headers) for _ in one.shards),
                None if one.weight_map is None else INDEX,
            )
            for source, one in zip(sources, found, strict=True)
        ]
        share_tensors(layouts)
        stored = [(lay, one) for lay, one in zip(layouts, found, strict=True) if isinstance(one, _Found)]
        _all(pool, lambda pair: parser.check(*pair), stored)
    return layouts


def read_shards(files: Sequence[tuple[Source, str]], progress: Progress | None = None) -> list[ShardInfo]:
    """What safetensors files hold, their headers read concurrently; equal ones share their tensors.

    Raises:
        HubExtrapError: as ``read_layouts``.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-headers") as pool:
        return _Parser().read(pool, files, progress)


@dataclass(frozen=True, slots=True)
class _Found:
    """Which files hold a checkpoint's weights."""

    shards: tuple[str, ...]
    """In name order."""
    weight_map: Mapping[str, str] | None
    """Tensor to shard, as the index has it; None where one file holds all and there is no index."""


class _Parser:
    """Parses and checks each index and header once: those of a run are the same, and share what is in them.

    One at a time, for Python does no more, and what it holds while it parses is many times the text.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indices: dict[str, _Found] = {}
        self._headers: dict[tuple[str, int, str], ShardInfo] = {}
        self._sound: set[tuple[int, int]] = set()

    def find(
        self, pool: ThreadPoolExecutor, sources: Sequence[Source], progress: Progress | None
    ) -> list[_Found | CheckpointLayout]:
        """`find_weights` of each; those that lie in pieces take a look into all of their files."""
        in_pieces = sum(isinstance(source, AssembledSource) for source in sources)
        if not in_pieces:
            return _all(pool, self.find_weights, sources)
        label = "Finding tensors in pieces"
        with (progress or SilentProgress()).stage(label, in_pieces, "checkpoints") as stage:

            def find(source: Source) -> _Found | CheckpointLayout:
                found = self.find_weights(source)
                stage.advance(int(isinstance(source, AssembledSource)))
                return found

            return _all(pool, find, sources)

    def find_weights(self, source: Source) -> _Found | CheckpointLayout:
        """Which files of the folder hold the weights, all of which are there; or what an assembly knows."""
        if isinstance(source, AssembledSource):
            return source.layout
        files = source.files()
        check_files(files, source.name)
        if INDEX not in files:
            return _Found((SINGLE,), None)
        data = source.read_file(INDEX)
        key = sha256_hex(data)
        with self._lock:
            if key not in self._indices:
                weight_map = _parse_index(data, f"{source.name}/{INDEX}")
                self._indices[key] = _Found(tuple(sorted(set(weight_map.values()))), weight_map)
            found = self._indices[key]
        _check_shards(source.name, files, found.shards)
        return found

    def read(
        self, pool: ThreadPoolExecutor, shards: Sequence[tuple[Source, str]], progress: Progress | None
    ) -> list[ShardInfo]:
        """What the files hold, their headers read concurrently."""
        if not shards:
            return []
        with (progress or SilentProgress()).stage("Reading headers", len(shards), "files") as stage:

            def read(shard: tuple[Source, str]) -> ShardInfo:
                info = self.header(*read_header(*shard), shard[1], shard[0].name)
                stage.advance(1)
                return info

            return _all(pool, read, shards)

    def header(self, data: bytes, size: int, file: str, name: str) -> ShardInfo:
        """What a file's first bytes say."""
        key = (file, size, sha256_hex(data[: header_end(data, size, f"{name}/{file}")]))
        with self._lock:
            if key not in self._headers:
                self._headers[key] = parse_header(data, size, file, name)
            return self._headers[key]

    def check(self, layout: CheckpointLayout, found: _Found) -> None:
        """Every tensor has to lie in one shard, and where the index says."""
        key = (id(layout.tensors), id(found))
        with self._lock:
            if key not in self._sound:
                _check_tensors(layout, found.weight_map)
                self._sound.add(key)


def check_files(files: Collection[str], name: str, kinds: Collection[str] = (WHOLE_MODEL,)) -> None:
    """Whether a folder can hold a checkpoint, by the names of its files.

    Args:
        kinds: of weights, those that the caller can read.

    Raises:
        UnsupportedCheckpoint: it holds weights of another kind or none, and what to do about it.
        CorruptFile: shards without their index.
    """
    if SINGLE in files or INDEX in files:
        return
    weights = weights_of((file, 0) for file in files)
    if weights is not None and weights.kind == WHOLE_MODEL:
        what = f"has {weights.files[0]} but no {INDEX}; download the whole folder again"
        if len(weights.files) == 1 and _WHOLE_IN_ONE.fullmatch(weights.files[0]):
            what += f", or rename that file to {SINGLE}, as it holds the whole model"
        raise CorruptFile(f"{name}: {what}")
    if weights is not None and weights.kind in kinds:
        return
    if ADAPTER_FILE in files or ADAPTER_CONFIG in files or (weights and weights.kind == ADAPTER):
        raise UnsupportedCheckpoint(
            f"{name}: holds an adapter, not a model; merge it into its base first: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
        )
    if weights is not None and weights.form != UNUSUAL:
        commands = weights.convert([Checkpoint(0, None, "", None, "FOLDER")])
        how = f"convert it: {commands}" if commands else "save a whole model with the trainer itself"
        raise UnsupportedCheckpoint(f"{name}: {weights.said}; {how}")
    there = ", ".join(sorted(files)[:12]) or "nothing"
    raise UnsupportedCheckpoint(
        f"{name}: neither {SINGLE} nor {INDEX} is there, only: {shorten(there, 500)}; name the "
        "folder that holds the model"
    )


def _all(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` on every item; all the errors at once, as one."""
    futures = [pool.submit(work, item) for item in items]
    results, errors = [], []
    try:
        for future in futures:
            try:
                results.append(future.result())
            except HubExtrapError as error:
                errors.append(error)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise type(errors[0])(own_lines(*_some_of_each([str(error) for error in errors]))) from errors[0]
    return results


def _some_of_each(messages: Sequence[str]) -> list[str]:
    """Each message once, and the first few of those that differ in numbers alone, as steps and ranks do."""
    alike: dict[str, list[str]] = {}
    for message in dict.fromkeys(messages):
        alike.setdefault(_NUMBER.sub("0", message), []).append(message)
    found = []
    for those in alike.values():
        more = len(those) - ALIKE
        found += those[:ALIKE]
        if more > 0:
            found.append(
                f"and {more:,} more messages like this one; the last is of {those[-1].split(': ')[0]}"
            )
    return found


def _check_shards(name: str, files: Collection[str], shards: Sequence[str]) -> None:
    """The shards that an index names have to be there, and no other model."""
    if SINGLE in files and list(shards) != [SINGLE]:
        raise CheckpointError(
            f"{name}: has both {SINGLE} and {INDEX}, which names "
            f"{shorten(', '.join(shards))}; transformers loads {SINGLE}, other programs what the index "
            "names. Remove the one that is not the model (of a repo that is not yours, in a local copy), or "
            "leave this checkpoint out"
        )
    missing = [shard for shard in shards if shard not in files]
    if missing:
        raise CorruptFile(
            f"{name}: {INDEX} names files that are not there: {shorten(', '.join(missing))}; "
            "download the whole folder again"
        )


def _parse_index(data: bytes, where: str) -> dict[str, str]:
    """Tensor to shard."""
    index = parse_json(data, where, limit=HEADER_LIMIT)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{where}: has no weight_map from tensors to files; download it again", file=where)
    for tensor, file in weight_map.items():
        if not _is_plain_shard(file):
            raise CorruptFile(
                f"{where}: puts tensor {shorten(repr(tensor))} into {shorten(repr(file))}, which is not a "
                "safetensors file of this folder; download the index again. If its author keeps the files "
                "elsewhere, make a copy with the files beside the index and their plain names in it",
                file=where,
            )
    return weight_map


def _is_plain_shard(file: object) -> bool:
    return (
        isinstance(file, str)
        and file.endswith(".safetensors")
        and not file.startswith(".")
        and file.isprintable()
        and not any(separator in file for separator in "/\\:")
    )


def read_header(source: Source, file: str) -> tuple[bytes, int]:
    """The first bytes of a safetensors file, at least up to the end of its header, and the file's size.

    Raises:
        CorruptFile: it is too short for a header.
        SourceError: it could not be read.
    """
    size = source.files()[file].size
    head = bytearray(min(size, HEAD))
    source.read(file, 0, memoryview(head))
    end = header_end(bytes(head[:8]), size, f"{source.name}/{file}")
    if end > len(head):
        rest = bytearray(end - len(head))
        source.read(file, len(head), memoryview(rest))
        head += rest
    return bytes(head), size


def _check_tensors(layout: CheckpointLayout, weight_map: Mapping[str, str] | None) -> None:
    places: dict[str, str] = {}
    for shard in layout.shards:
        for tensor in shard.tensors:
            if tensor.name in places:
                raise CorruptFile(
                    f"{layout.name}: tensor {shorten(repr(tensor.name))} is in both {places[tensor.name]} "
                    f"and {shard.file}; download the folder again",
                    tensor=tensor.name,
                )
            places[tensor.name] = shard.file
    if not places:
        raise CorruptFile(f"{layout.name}: its weight files hold no tensors; download them again")
    if weight_map is None:
        return
    for name in {**weight_map, **places}:
        listed, found, tensor_name = weight_map.get(name), places.get(name), shorten(repr(name))
        if listed != found:
            what = f"{found} holds tensor {tensor_name}, which {INDEX} does not list"
            if listed:
                what = f"{INDEX} puts tensor {tensor_name} into {listed}, which does not hold it"
            raise CorruptFile(f"{layout.name}: {what}; download the folder again", tensor=name)
