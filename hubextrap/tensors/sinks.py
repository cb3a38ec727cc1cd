"""Finished shards in a local folder: hashed as they are written, under their names only when whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.durable.atomic import is_new_name, new_file, sync_folder, writing
from hubextrap.errors import OutputError
from hubextrap.tensors.blocks import BlockWriter
from hubextrap.tensors.interfaces import FinishedShard

if TYPE_CHECKING:
    from hubextrap.tensors.journal import Journal


class LocalSink:
    """Writes shards into ``folder``, which is made if it is not there."""

    def __init__(
        self, folder: Path | str, journal: Journal | None = None, *, among_others: bool = False
    ) -> None:
        """
        Args:
            journal: where each shard is recorded as soon as it is whole on the disk.
            among_others: other processes may be making the same file there: each of them as a file of its
                own until it is whole, and the last one stays. What one left that was killed is removed.
        """
        self.folder = Path(folder)
        self._journal = journal
        self._among_others = among_others
        with writing(self.folder, "choose another output folder"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def open(self, file: str, size: int) -> LocalShardWriter:
        """Start a file of exactly ``size`` bytes; its space is taken at once.

        Raises:
            OutputError: there is no room for it, or the folder cannot be written to.
        """
        if file in ("", ".", "..") or Path(file).name != file:
            raise OutputError(
                f"{file!r}: not a plain file name; the output would leave {self.folder}", file=file
            )
        return LocalShardWriter(self.folder, file, size, self._journal, among_others=self._among_others)

    def remove_unfinished(self) -> None:
        """Remove what others who were killed left, or are still making though all is there.

        Raises:
            OutputError: it could not be removed.
        """
        with writing(self.folder, "check its permissions"):
            for path in self.folder.iterdir():
                if is_new_name(path.name):
                    path.unlink(missing_ok=True)


class LocalShardWriter:
    """One file on its way; until ``finish`` it is called ``.NAME.part``, or by a name that no other has."""

    def __init__(
        self,
        folder: Path,
        file: str,
        size: int,
        journal: Journal | None = None,
        *,
        among_others: bool = False,
    ) -> None:
        self._final = folder / file
        self._part = folder / f".{file}.part"
        self._size = size
        self._journal = journal
        self._position = 0
        self._descriptor = -1
        self._blocks: BlockWriter | None = None
        try:
            if among_others:
                self._part, self._descriptor = new_file(self._final)
            else:
                self._descriptor = os.open(
                    self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
                )
            self._blocks = BlockWriter(self._descriptor)
            _reserve(self._descriptor, size)
        except BaseException as error:
            self.abort()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Put ``data`` at ``offset``, which is where the last call ended.

        Raises:
            OutputError: the disk did not take it.
        """
        view = data.cast("B")
        if offset != self._position or offset + len(view) > self._size:
            raise ValueError(
                f"{self._final.name}: write at {offset}, expected {self._position} of {self._size}"
            )
        assert self._blocks is not None
        try:
            self._blocks.append(view)
        except OSError as error:
            raise self._failed(error) from error
        self._position += len(view)

    def finish(self) -> FinishedShard:
        """Force the file to disk and give it its name.

        Raises:
            OutputError: the disk did not take it.
        """
        if self._position != self._size:
            raise ValueError(f"{self._final.name}: finished at {self._position} of {self._size} bytes")
        assert self._blocks is not None
        try:
            self._blocks.close()
            sha256 = self._blocks.hash.hexdigest()
            os.fsync(self._descriptor)
            self._part.replace(self._final)  # while it is locked: see `new_file`
            self._close()
            sync_folder(self._final.parent)
        except OSError as error:
            raise self._failed(error) from error
        shard = FinishedShard(self._final.name, self._size, sha256)
        if self._journal is not None:
            self._journal.record(shard)
        return shard

    def abort(self) -> None:
        """Remove what was written; does nothing after ``finish``."""
        self._close()
        with contextlib.suppress(OSError):
            self._part.unlink()

    def _close(self) -> None:
        if self._blocks is not None:
            self._blocks.stop()
            self._blocks = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failed(self, error: OSError) -> OutputError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(self._final.parent).free
            return OutputError(
                f"{self._final}: no room: {self._size:,} bytes are needed, {free:,} are free; make room or "
                "choose another output folder"
            )
        return OutputError(
            f"{self._final}: cannot be written: {error.strerror}; check the folder's permissions and the disk"
        )


def _reserve(descriptor: int, size: int) -> None:
    """Take the space now, so that a full disk shows before any work; OSError if there is none."""
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)
