"""The files that a commit is to hold, and what it has to change for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.digests import hash_like, is_sha256
from hubextrap.hub.side_files import is_mixed_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from hubextrap.tensors.interfaces import FinishedShard
    from hubextrap.trajectory.hub_file import HubFile

_SCORE_FILES = ("hubextrap-eval.", ".eval_results/hubextrap-")  # an older model's, by how their paths begin


def is_score_file(path: str) -> bool:
    """Whether ``path``, in a repo, holds scores that we published."""
    return path.startswith(_SCORE_FILES)


class OutgoingFile:
    """A file that is to be in the commit, and where its bytes are."""

    def __init__(self, path: str, content: Path | bytes, sha256: str | None = None) -> None:
        """
        Args:
            path: in the repo.
            content: a local file, or the bytes.
            sha256: of the content, where it is known; computed here when None.
        """
        from huggingface_hub import CommitOperationAdd

        self.path = path
        self.operation = CommitOperationAdd(path, content)
        self.size: int = self.operation.upload_info.size
        self.sha256 = sha256 or self.operation.upload_info.sha256.hex()
        self.operation.upload_info.sha256 = bytes.fromhex(self.sha256)

    @classmethod
    def uploaded(cls, shard: FinishedShard) -> OutgoingFile:
        """A large file whose bytes the Hub has already; they need not be here."""
        from huggingface_hub.lfs import UploadInfo

        file = cls(shard.file, b"", shard.sha256)
        file.size = shard.size
        # As `preupload_lfs_files(free_memory=True)` leaves an operation; the client has no public way to it.
        file.operation.upload_info = UploadInfo(shard.size, sample=b"", sha256=bytes.fromhex(shard.sha256))
        file.operation._upload_mode = "lfs"
        file.operation._is_uploaded = True
        return file

    def same_as(self, remote: HubFile | None) -> bool:
        """Whether the Hub's file has these bytes."""
        if remote is None or remote.digest is None or remote.size != self.size:
            return False
        if is_sha256(remote.digest):
            return remote.digest == self.sha256
        with self.operation.as_file() as file:  # no file that was uploaded before, whose bytes are gone
            return hash_like(remote.digest, file.read()) == remote.digest


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit has to do."""

    added: tuple[OutgoingFile, ...]
    deleted: tuple[str, ...]

    @classmethod
    def between(
        cls,
        files: Sequence[OutgoingFile],
        there: Mapping[str, HubFile],
        earlier: Mapping[str, HubFile] | None = None,
    ) -> Changes:
        """
        Args:
            earlier: what an earlier prediction left, if ``files`` are a whole model; None where they are not,
                and nothing goes.
        """
        ours = {file.path for file in files}
        return cls(
            added=tuple(file for file in files if not file.same_as(there.get(file.path))),
            deleted=() if earlier is None else stale_files(ours, there, earlier),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.deleted)


def stale_files(
    ours: Collection[str], there: Mapping[str, HubFile], earlier: Mapping[str, HubFile]
) -> tuple[str, ...]:
    """What of ``there`` is an older model's when the model that consists of ``ours`` comes. Paths, sorted.

    Args:
        earlier: what a prediction that was there had of its own; it goes where nobody has changed it since.
    """
    return tuple(
        path
        for path, file in sorted(there.items())
        if path not in ours and (is_mixed_in(path) or is_score_file(path) or earlier.get(path) == file)
    )
