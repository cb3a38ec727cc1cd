"""A checkpoint in a local folder, read with preadv."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import ReferenceNotFound, SourceError
from hubextrap.tensors.interfaces import SMALL_FILE, TEMPLATE_FOLDER, FileInfo

if TYPE_CHECKING:
    from collections.abc import Mapping


class LocalSource:
    """The files of a folder, links followed, as they were when the source was opened. Thread-safe.

    Only names that the folder's listing holds can be read, so no name leads out of it.
    """

    def __init__(self, folder: Path | str, name: str | None = None) -> None:
        self.name = name or str(folder)
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        try:
            self._list("")
            if (self._folder / TEMPLATE_FOLDER).is_dir():
                self._list(f"{TEMPLATE_FOLDER}/")
        except FileNotFoundError:
            raise ReferenceNotFound(f"{self.name}: no such folder; check the path") from None
        except OSError as error:
            raise SourceError(
                f"{self.name}: cannot list the folder: {error.strerror}; check its permissions"
            ) from error

    def _list(self, prefix: str) -> None:
        with os.scandir(self._folder / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_file():
                    self._stamps[prefix + entry.name] = _stamp(entry.stat())

    @property
    def folder(self) -> Path:
        return self._folder

    def files(self) -> Mapping[str, FileInfo]:
        return {file: FileInfo(size) for file, (size, *_) in self._stamps.items()}

    def stamp(self, file: str) -> tuple[int, ...]:
        """Size, times and place of a file when the source was opened: while they stay, so do its bytes."""
        return self._known(file)

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        descriptor = self._descriptor(file)
        size = self._stamps[file][0]
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > size:
            raise SourceError(
                f"{self.name}/{file}: bytes {offset}-{offset + len(view)} asked for, but it has {size:,}"
            )
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"{self.name}/{file}: cannot be read: {error.strerror}; check the disk"
                ) from error
            if count == 0:
                raise self._changed(file)
            done += count
        if _stamp(os.fstat(descriptor)) != self._stamps[file]:
            raise self._changed(file)

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        size = self._known(file)[0]
        if size > limit:
            raise SourceError(
                f"{self.name}/{file}: {size:,} bytes are more than the {limit:,} that such a file may have"
            )
        buffer = bytearray(size)
        self.read(file, 0, memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            self._stamps.clear()

    def _known(self, file: str) -> tuple[int, ...]:
        stamp = self._stamps.get(file)
        if stamp is None:
            raise SourceError(f"{self.name}: no file {file!r} in the folder")
        return stamp

    def _descriptor(self, file: str) -> int:
        with self._lock:
            stamp = self._known(file)
            descriptor = self._descriptors.get(file)
            if descriptor is not None:
                return descriptor
            try:
                descriptor = os.open(self._folder / file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SourceError(
                    f"{self.name}/{file}: cannot be opened: {error.strerror}; check its permissions and "
                    "`ulimit -n`"
                ) from error
            if _stamp(os.fstat(descriptor)) != stamp:
                os.close(descriptor)
                raise self._changed(file)
            self._descriptors[file] = descriptor
            return descriptor

    def _changed(self, file: str) -> SourceError:
        return SourceError(
            f"{self.name}/{file}: changed while it was read; wait until nothing writes to it, then run the "
            "same command again"
        )


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What shows that a file was swapped or written to: nobody can set the third of these."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
