"""LFS objects on disk by sha256, verified while they stream in, and the pointer files that name them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hubextrap.localhub.refusal import Refusal

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,15})\n"
)
_CHUNK = 1 << 20
_REGULAR_MAX = 10_000_000  # bytes; larger files are LFS whatever they hold
LFS_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".gguf", ".gz", ".h5", ".joblib", ".model", ".msgpack"),
    *(".npy", ".npz", ".onnx", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors"),
    *(".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"),
)
DEFAULT_GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()
"""What a new repo starts with."""


class RejectedObject(Refusal):
    """The bytes that arrived are not the object that was announced, or there is no such object."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


@dataclass(frozen=True)
class Pointer:
    """What a pointer file says: the object's sha256 (hex) and its size in bytes."""

    sha256: str
    size: int

    def encode(self) -> bytes:
        """The pointer file."""
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @staticmethod
    def decode(blob: bytes) -> Pointer | None:
        """The pointer in ``blob``, or None if it is some other file."""
        match = _POINTER.fullmatch(blob)
        return Pointer(match[1].decode(), int(match[2])) if match else None


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of ``file`` from where it stands, 1 MiB at a time."""
    while chunk := file.read(_CHUNK):
        yield chunk


def is_lfs(path: str, size: int, sample: bytes, tracked: bool | None) -> bool:
    """Whether a file goes to LFS: always if it is large, else as .gitattributes say (``tracked``).

    Where they say nothing, binary data does. The usual suffixes do too: a hub's folder may be older than
    its list of them in .gitattributes, and a branch may start from nothing.
    """
    if size == 0 or size > _REGULAR_MAX or tracked is not None:
        return size > _REGULAR_MAX or (size > 0 and bool(tracked))
    return PurePosixPath(path).suffix.lower() in LFS_SUFFIXES or b"\0" in sample


def regular_size(path: Path) -> int | None:
    """The size of a file that the hub wrote; None if a link or a device has taken its place, or nothing."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and not path.parent.is_symlink():
            return found.st_size
    return None


class LfsObjects:
    """A folder of objects named by their sha256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"

    def path(self, sha256: str) -> Path:
        """Where the object lies, or would lie."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is not a sha256 in hex")
        return self._folder / sha256[:2] / sha256

    def pointer(self, sha256: str) -> Pointer:
        """The object's name and size. Raises RejectedObject where it is not there."""
        size = regular_size(self.path(sha256))
        if size is None:
            raise RejectedObject(f"the LFS object {sha256} is not there")
        return Pointer(sha256, size)

    def has(self, pointer: Pointer) -> bool:
        """Whether the object is there with the size that the pointer says."""
        return regular_size(self.path(pointer.sha256)) == pointer.size

    def add(self, chunks: Iterable[bytes], expected: Pointer | None = None) -> Pointer:
        """Store what ``chunks`` yield; nothing is left behind unless it is what was ``expected``.

        Raises:
            RejectedObject: another size or another sha256 arrived.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        incoming = Path(name)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if expected and size > expected.size:
                        announced = f"the {expected.size} bytes announced for {expected.sha256}"
                        raise RejectedObject(f"more than {announced}")
                    digest.update(chunk)
                    file.write(chunk)
            found = Pointer(digest.hexdigest(), size)
            if expected and found != expected:
                raise RejectedObject(
                    f"expected {expected.size} bytes, sha256 {expected.sha256}; got {size}, {found.sha256}"
                )
            target = self.path(found.sha256)
            target.parent.mkdir(exist_ok=True)
            incoming.replace(target)
            return found
        finally:
            incoming.unlink(missing_ok=True)

    def link(self, pointer: Pointer, source: LfsObjects) -> None:
        """Take an object over from another repo's objects. Objects never change, so they share their bytes.

        Raises:
            RejectedObject: it is not there.
        """
        if self.has(pointer):
            return
        if not source.has(pointer):
            raise RejectedObject(f"{pointer.sha256} of {pointer.size} bytes is not there")
        target = self.path(pointer.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(source.path(pointer.sha256), target)

    def link_all(self, source: LfsObjects) -> None:
        """Take over every object of another repo."""
        for path in source._folder.glob("??/*"):
            self.link(source.pointer(path.name), source)

    def add_part(self, sha256: str, number: int, chunks: Iterable[bytes]) -> str:
        """Keep one part of an object that comes in several; returns the part's etag."""
        part = self._part(sha256, number)
        part.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.md5(usedforsecurity=False)
        with part.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def join_parts(self, expected: Pointer, count: int) -> None:
        """Make the object of its ``count`` parts, which are gone afterwards in any case.

        Raises:
            RejectedObject: a part is missing or the whole is not what was expected.
        """
        parts = [self._part(expected.sha256, number) for number in range(1, count + 1)]
        try:
            missing = [number for number, part in enumerate(parts, 1) if not part.is_file()]
            if missing:
                raise RejectedObject(f"parts {missing} of {expected.sha256} were never uploaded")
            self.add(_chunks_of_files(parts), expected)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
            with suppress(OSError):
                parts[0].parent.rmdir()

    def _part(self, sha256: str, number: int) -> Path:
        return self._incoming / f"parts-{self.path(sha256).name}" / f"{number:05d}"


def _chunks_of_files(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            yield from chunks_of(file)
