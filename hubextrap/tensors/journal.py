"""Which shards of an output are finished, on disk, so that a run that was stopped can go on where it was."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hubextrap.durable.log import Log
from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Journal(Log):
    """The finished shards of one output. Used by one thread at a time.

    Attributes:
        finished: the shards that need not be made again, by file.
        inputs: what each shard was made from; to be there before the shard is recorded.
        stamps: what the local inputs' files looked like when they last were as a run had read them.
        identical: every byte so far is the last checkpoint's.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        """See `Log`."""
        self.finished: dict[str, FinishedShard] = {}
        self.inputs: dict[str, ShardInputs] = {}
        self.stamps: dict[str, str] = {}
        self.identical = True
        remedy = "make room or check the folder's permissions, then run the same command again"
        super().__init__(path, fingerprint, remedy=remedy)

    def record(self, shard: FinishedShard) -> None:
        """Note that ``shard`` is whole; the note is on the disk when this returns.

        Raises:
            OutputError: the disk did not take it.
        """
        made_from = self.inputs.get(shard.file, ShardInputs((), False))
        self._note(
            {
                **asdict(shard),
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
        self._begin()
        self.finished.clear()
        self.inputs.clear()
        self.stamps.clear()
        self.identical = True

    def _take(self, record: dict[str, Any]) -> None:
        match record:
            case {"stamps": dict(stamps)}:
                self.stamps = stamps
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
            case _:
                raise ValueError("no record of a shard")
