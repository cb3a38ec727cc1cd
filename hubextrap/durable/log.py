"""JSON lines in a file that only grows, each with its own sha256.

What a kill cut short is cut off before more is written, and a line that the disk did not take whole leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.durable.atomic import writing
from hubextrap.durable.lock import open_held
from hubextrap.errors import OutputError
from hubextrap.foreign_data import parse_json
from hubextrap.output_files import refuse_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = "2"
LINE_LIMIT = 100_000_000
"""Longest line in bytes that is read."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_BEGINNING = b'{"fingerprint": {"the journal'


class Log:
    """What a run has finished, a record for each, so that the next run goes on where it was.

    The first line says what is being made, each further line is a record. When the file is opened again, the
    first line that is cut short, or not as it was written, is cut off with all behind it.

    Attributes:
        changed: the parts of the fingerprint that an earlier run had otherwise, so that its records are of no
            use; empty where there was none, or where it made the same.
    """

    def __init__(
        self, path: Path, fingerprint: Mapping[str, str], *, remedy: str, beside_output_of: str | None = None
    ) -> None:
        """Open the log at ``path``, or begin it where it is not there or was begun for something else.

        Args:
            fingerprint: everything that decides the output's bytes, by what messages call it.
            remedy: what the user does about a file that cannot be written.
            beside_output_of: the kind of run, where the file lies among the user's and not in a place that is
                locked as a whole. So it is locked, what is no log is refused, and records are not forced to
                disk: they are many, and cheap to make again.

        Raises:
            OutputError: it cannot be read or written, is somebody else's file, or another run holds it.
        """
        self._path, self._remedy, self._run = path, remedy, beside_output_of
        self._fingerprint = {"the journal's format": FORMAT, **fingerprint}
        self.changed: tuple[str, ...] = ()
        with writing(path, remedy, "the journal "):
            refuse_file(path)
            try:
                descriptor = open_held(path, _FLAGS) if self._run else os.open(path, _FLAGS, 0o666)
            except BlockingIOError:
                said = f"{path}: another {self._run} is writing it; wait for it to end, or stop it"
                raise OutputError(said, file=path) from None
            self._file = os.fdopen(descriptor, "rb")  # the descriptor appends
            try:
                if intact := self._take_over():
                    os.ftruncate(descriptor, intact)
                else:
                    self._begin()
            except BaseException:
                self._file.close()
                raise

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file, once what it held is saved elsewhere."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _take(self, record: dict[str, Any]) -> None:
        """Take over a record of an earlier run.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: it is none.
        """
        raise NotImplementedError

    def _note(self, record: Mapping[str, Any]) -> None:
        """Add a record; OutputError if the disk did not take it."""
        with writing(self._path, self._remedy, "the journal "):
            _append(self._file, sealed_line(record), sync=self._run is None)

    def _begin(self) -> None:
        """Drop all records; OutputError if the disk did not take it."""
        with writing(self._path, self._remedy, "the journal "):
            os.ftruncate(self._file.fileno(), 0)
        self._note({"fingerprint": self._fingerprint})

    def _take_over(self) -> int:
        """Read what an earlier run left; returns how many bytes of it are to stay."""
        if self._run and not _BEGINNING.startswith(self._file.read(len(_BEGINNING))):
            raise OutputError(
                f"{self._path}: exists, but a stopped {self._run} did not leave it; move it away, or choose "
                "another --out",
                file=self._path,
            )
        self._file.seek(0)
        intact = 0
        while raw := self._file.readline(LINE_LIMIT):
            line = unsealed_line(raw)
            if line is None:
                break
            try:
                if intact:
                    self._take(line)
                else:
                    before, now = line["fingerprint"], self._fingerprint
                    self.changed = tuple(
                        part for part in {**before, **now} if before.get(part) != now.get(part)
                    )
                    if self.changed:
                        return 0
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                break
            intact += len(raw)
        return intact


def append_line(path: Path, line: bytes, *, remedy: str) -> None:
    """Add a line to a file that is closed in between, and force it to disk. The folder is made if need be.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_file(path)
        with os.fdopen(os.open(path, _FLAGS, 0o666), "rb") as file:
            os.ftruncate(file.fileno(), file.read().rfind(b"\n") + 1)
            _append(file, line, sync=True)


def sealed_line(line: Mapping[str, Any], *, ensure_ascii: bool = True) -> bytes:
    """A line of a log: JSON that states its own sha256; floats are written so that they read back exactly."""
    return json.dumps(sealed(line), allow_nan=False, ensure_ascii=ensure_ascii).encode() + b"\n"


def unsealed_line(raw: bytes) -> dict[str, Any] | None:
    """What `sealed_line` was given; None where a line is cut short, damaged, or states no sha256."""
    with contextlib.suppress(ValueError):
        content = parse_json(raw, "the journal", error=ValueError, limit=LINE_LIMIT)
        if raw.endswith(b"\n") and isinstance(content, dict) and DIGEST in content:
            line: dict[str, Any] = unsealed(content)
            return line
    return None


def _append(file: BinaryIO, data: bytes, *, sync: bool) -> None:
    """All of it, or nothing."""
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        if sync:
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
