"""What the engine reads from and writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from hubextrap.containment import Entry, shown
from hubextrap.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping


SMALL_FILE = 64 * 2**20
"""Bytes that a file may have which is read whole."""

TEMPLATE_FOLDER = "additional_chat_templates"
"""The one subfolder that belongs to a model: a tokenizer's further chat templates lie there."""
PUSHED_FOLDER, STATE_FILE = "last-checkpoint", "trainer_state.json"
"""What transformers' Trainer leaves beside each checkpoint; and the folder into which it pushes that of a
model at a repo's root (hub_strategy: checkpoint), of which nothing else is read."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a checkpoint's folder."""

    size: int
    digest: str | None = None
    """sha256 of an LFS file, git blob id of a regular one, None for a local file."""
    problem: str | None = None
    """Why it is not read, and what to do about it; see ``containment``."""
    cached: str | None = None
    """Where the Hub cache keeps the bytes, if they are read from there."""


K = TypeVar("K", FileInfo, Entry)


def readable(found: K | None, name: str, file: str, limit: int | None = None) -> K:
    """What a source knows of a file.

    Raises:
        SourceError: it is not there, may not be read, or is larger than ``limit``.
    """
    if found is None:
        raise SourceError(f"{name}: no file {file!r} in the folder", file=file)
    if found.problem is not None:
        raise SourceError(f"{name}/{shown(file)}: {found.problem}", file=file)
    if limit is not None and found.size > limit:
        what = (
            f"{found.size:,} bytes are more than the {limit:,} that such a file may have; put another there"
        )
        raise SourceError(f"{name}/{file}: {what}", file=file)
    return found


def check_range(size: int, offset: int, length: int, name: str, file: str) -> None:
    """Raises SourceError for bytes that a file of ``size`` bytes does not have."""
    if offset < 0 or offset + length > size:
        what = f"bytes {offset}-{offset + length} asked for, but it has {size:,}"
        raise SourceError(f"{name}/{file}: {what}", file=file)


class Source(Protocol):
    """The files of one checkpoint. Thread-safe."""

    name: str
    """What messages call it."""

    def files(self) -> Mapping[str, FileInfo]:
        """The folder's files, those in its ``TEMPLATE_FOLDER`` and where no whole model lies there in
        `weights.inner_folders`, and the state in its ``PUSHED_FOLDER`` where none lies beside the model; by
        path relative to it (posix)."""

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on.

        Raises:
            SourceError: fewer bytes are there, or they could not be read.
        """

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        """A whole small file (config, index, tokenizer).

        Raises:
            SourceError: it is larger than ``limit`` or could not be read.
        """

    def close(self) -> None:
        """Let go of files and connections; the source cannot be used afterwards."""


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A file that was written whole."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardInputs:
    """What a shard was made from."""

    digests: tuple[str, ...]
    """One for each checkpoint, of its tensors that went in; empty where none did."""
    compared: bool
    """Whether each file that the Hub lists a hash for, and that is to be read whole, was compared with it."""


class ShardWriter(Protocol):
    """One output file being written."""

    def write(self, offset: int, data: memoryview) -> None:
        """Put ``data`` at ``offset``; calls cover the file in offset order, without gaps or overlaps."""

    def finish(self) -> FinishedShard:
        """Close the file once all its bytes are there."""

    def abort(self) -> None:
        """Drop what was written."""


class Sink(Protocol):
    """Where finished shards go."""

    def open(self, file: str, size: int) -> ShardWriter:
        """Start a file of exactly ``size`` bytes."""
