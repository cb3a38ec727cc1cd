"""A checkpoint in a local folder, read with preadv."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import finalize

from hubextrap.containment import Entry, entries_of, open_regular, shown, stamp_of
from hubextrap.errors import ReferenceNotFound, SourceError
from hubextrap.tensors.configuration import check_loaded
from hubextrap.tensors.interfaces import (
    PUSHED_FOLDER,
    SMALL_FILE,
    STATE_FILE,
    TEMPLATE_FOLDER,
    FileInfo,
    check_range,
    readable,
)
from hubextrap.trajectory.local_files import entries_of_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping


class LocalSource:
    """The files of a folder, as they were when the source was opened. Thread-safe.

    Only names that the folder's listing holds can be read, and no link that leads out of it, so nothing does:
    see ``containment``.
    """

    def __init__(self, folder: Path | str, name: str | None = None) -> None:
        self.name = name or str(folder)
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        finalize(self, _close_all, self._descriptors).atexit = False  # one that nobody closes
        self._entries: dict[str, Entry] = {}
        templates = self.folder / TEMPLATE_FOLDER
        try:
            self._entries |= entries_of_checkpoint(folder)
            if templates.is_symlink():
                what = "is a link; copy the folder that it leads to in its place"
                raise SourceError(f"{self.name}/{TEMPLATE_FOLDER}: {what}", file=TEMPLATE_FOLDER)
            if templates.is_dir():
                inside = entries_of(folder, TEMPLATE_FOLDER)
                self._entries |= {f"{TEMPLATE_FOLDER}/{file}": entry for file, entry in inside.items()}
            pushed = self.folder / PUSHED_FOLDER
            if STATE_FILE not in self._entries and pushed.is_dir() and not pushed.is_symlink():
                inside = entries_of(folder, PUSHED_FOLDER)
                if STATE_FILE in inside:
                    self._entries[f"{PUSHED_FOLDER}/{STATE_FILE}"] = inside[STATE_FILE]
        except FileNotFoundError:
            raise ReferenceNotFound(f"{self.name}: no such folder; check the path") from None
        except OSError as error:
            raise SourceError(
                f"{self.name}: cannot list the folder: {error.strerror}; check its permissions"
            ) from error
        self._files: Mapping[str, FileInfo] = {
            file: FileInfo(entry.size, problem=entry.problem) for file, entry in self._entries.items()
        }

    def files(self) -> Mapping[str, FileInfo]:
        return self._files

    def place(self, file: str) -> Path:
        """Where the file's bytes lie, for those who read them by themselves; no link.

        Raises:
            SourceError: it may not be read.
        """
        return self._known(file).path

    def stamp(self, file: str) -> tuple[int, ...]:
        """Size, times and place of a file when the source was opened: while they stay, so do its bytes."""
        return self._known(file).stamp

    def read(self, file: str, offset: int, buffer: memoryview) -> None:
        descriptor = self._descriptor(file)
        size = self._known(file).size
        view = buffer.cast("B")
        check_range(size, offset, len(view), self.name, file)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"{self.name}/{file}: cannot be read: {error.strerror}; check the disk", file=file
                ) from error
            if count == 0:
                raise self._changed(file)
            done += count
        if _has_changed(self._known(file), descriptor):
            raise self._changed(file)

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        buffer = bytearray(self._known(file, limit).size)
        self.read(file, 0, memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        with self._lock:
            _close_all(self._descriptors)
            self._entries.clear()
            self._files = {}

    def _known(self, file: str, limit: int | None = None) -> Entry:
        return readable(self._entries.get(file), self.name, file, limit)

    def _descriptor(self, file: str) -> int:
        with self._lock:
            entry = self._known(file)
            descriptor = self._descriptors.get(file)
            if descriptor is not None:
                return descriptor
            try:
                descriptor = open_regular(entry.path)
            except OSError as error:
                raise SourceError(
                    f"{self.name}/{file}: cannot be opened: {error.strerror}; check its permissions and "
                    "`ulimit -n`",
                    file=file,
                ) from error
            if _has_changed(entry, descriptor):
                os.close(descriptor)
                raise self._changed(file)
            self._descriptors[file] = descriptor
            return descriptor

    def _changed(self, file: str) -> SourceError:
        return SourceError(
            f"{self.name}/{file}: changed while it was read; wait until nothing writes to it, then run the "
            "same command again",
            file=file,
        )


def check_folder(folder: Path | str, *, adapter: bool = False) -> None:
    """Refuse a folder for those who read in it what they like, as transformers does: hidden files excepted,
    all in it has to be what may be read.

    Args:
        adapter: whether it is taken for an adapter, of which transformers reads the tokenizer alone.

    Raises:
        SourceError: names the file that may not.
        UnsupportedCheckpoint: one leads out of the folder, see `check_loaded`.
    """
    with closing(LocalSource(folder)) as source:
        for file, info in source.files().items():
            if info.problem is not None and not file.startswith("."):
                raise SourceError(f"{folder}/{shown(file)}: {info.problem}", file=file)
        check_loaded(source, str(folder), adapter=adapter)


def _has_changed(entry: Entry, descriptor: int) -> bool:
    return stamp_of(os.fstat(descriptor)) != entry.stamp


def _close_all(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
