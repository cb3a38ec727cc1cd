"""Which shards of an output are finished, on disk, so that a run that was stopped can go on where it was.

The file holds JSON lines and only grows. The first line says what is being made (a fingerprint), each further
line names a shard that is whole, and is forced to disk before that shard counts as finished. A line that a
kill cut short, or that is not as it was written, is dropped when the journal is opened again, and so is
everything behind it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from hubextrap.claims import DIGEST, sealed, unsealed
from hubextrap.containment import read_named
from hubextrap.errors import OutputError
from hubextrap.foreign_data import parse_json
from hubextrap.tensors.headers import HEADER_LIMIT
from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FORMAT = "2"


class Journal:
    """The finished shards of one output. Used by one thread at a time.

    Attributes:
        finished: the shards that need not be made again, by file.
        inputs: what each shard was made from; to be there before the shard is recorded.
        stamps: what the local inputs' files looked like when they last were as a run had read them.
        identical: every byte so far is the last checkpoint's.
        changed: the parts of the fingerprint that an earlier run had otherwise, so that its shards are of no
            use; empty where there was none, or where it made the same.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        """Open the journal at ``path``, or begin it where it is not there or was begun for something else.

        Args:
            fingerprint: everything that decides the output's bytes, by what messages call it.

        Raises:
            OutputError: it cannot be read or written.
        """
        self._path = path
        self.finished: dict[str, FinishedShard] = {}
        self.inputs: dict[str, ShardInputs] = {}
        self.stamps: dict[str, str] = {}
        self.identical = True
        self.changed: tuple[str, ...] = ()
        fingerprint = {"the journal's format": FORMAT, **fingerprint}
        try:
            content = read_named(path, pipes=False) if path.exists() else b""
            intact = self._read(content, fingerprint)
            self._descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
            os.ftruncate(self._descriptor, intact)
            if intact == 0:
                self._append({"fingerprint": fingerprint})
            self._fingerprint = fingerprint
        except OSError as error:
            raise self._failed(error) from error

    def record(self, shard: FinishedShard) -> None:
        """Note that ``shard`` is whole; the note is on the disk when this returns.

        Raises:
            OutputError: the disk did not take it.
        """
        made_from = self.inputs.get(shard.file, ShardInputs((), False))
        self._note(
            {
                "file": shard.file,
                "size": shard.size,
                "sha256": shard.sha256,
                "identical": self.identical,
                "inputs": made_from.digests,
                "compared": made_from.compared,
            }
        )
        self.finished[shard.file] = shard

    def note_stamps(self, stamps: Mapping[str, str]) -> None:
        """Note what the local inputs' files look like, once they are known to hold what was read.

        Raises:
            OutputError: the disk did not take it.
        """
        if stamps != self.stamps:
            self._note({"stamps": dict(stamps)})
            self.stamps = dict(stamps)

    def start_over(self) -> None:
        """Forget what is finished.

        Raises:
            OutputError: the disk did not take it.
        """
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            raise self._failed(error) from error
        self._note({"fingerprint": self._fingerprint})
        self.finished.clear()
        self.inputs.clear()
        self.stamps.clear()
        self.identical = True

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, content: bytes, fingerprint: Mapping[str, str]) -> int:
        """Take over what an earlier run finished; returns how many bytes of it are to stay."""
        lines = _intact_lines(content)
        first, intact = next(lines, ({}, 0))
        before = first.get("fingerprint")
        if not isinstance(before, dict):
            return 0
        self.changed = tuple(
            part for part in {**before, **fingerprint} if before.get(part) != fingerprint.get(part)
        )
        if self.changed:
            return 0
        for line, end in lines:
            match line:
                case {"stamps": dict(stamps)}:
                    self.stamps = stamps
                    intact = end
                case {
                    "file": str(file),
                    "size": int(size),
                    "sha256": str(sha256),
                    "identical": bool(same),
                    "inputs": [*digests],
                    "compared": bool(compared),
                } if all(isinstance(digest, str) for digest in digests):
                    self.finished[file] = FinishedShard(file, size, sha256)
                    self.inputs[file] = ShardInputs(tuple(digests), compared)
                    self.identical = same
                    intact = end
                case _:
                    break
        return intact

    def _note(self, line: Mapping[str, Any]) -> None:
        try:
            self._append(line)
        except OSError as error:
            raise self._failed(error) from error

    def _append(self, line: Mapping[str, Any]) -> None:
        data = sealed_line(line)
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: the journal cannot be written: {error.strerror}; make room or check the folder's "
            "permissions, then run the same command again"
        )


def _intact_lines(content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """The JSON objects up to the first line that is none, each with the offset behind it."""
    end = 0
    for raw in content.splitlines(keepends=True):
        end += len(raw)
        line = unsealed_line(raw)
        if line is None:
            return
        yield line, end


def sealed_line(line: Mapping[str, Any]) -> bytes:
    """A line of a journal: JSON that states its own sha256."""
    return json.dumps(sealed(line), allow_nan=False).encode() + b"\n"


def unsealed_line(raw: bytes) -> dict[str, Any] | None:
    """What `sealed_line` was given; None where a line is cut short, damaged, or states no sha256."""
    try:
        content = parse_json(raw, "the journal", error=ValueError, limit=HEADER_LIMIT)
        if raw.endswith(b"\n") and isinstance(content, dict) and DIGEST in content:
            line: dict[str, Any] = unsealed(content)
            return line
    except ValueError:
        pass
    return None
