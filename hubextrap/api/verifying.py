"""`verify`: whether a prediction's weights are, byte for byte, the ones that its hubextrap.json describes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
from hubextrap.hub import PROVENANCE_FILE, OutputShard, read_provenance
from hubextrap.progress import Progress, SilentProgress
from hubextrap.tensors import LocalSource, RemoteSource, sha256_of
from hubextrap.trajectory import parse_reference
from hubextrap.trajectory.hub_files import commit_of

if TYPE_CHECKING:
    from hubextrap.progress import Stage
    from hubextrap.tensors.interfaces import Source


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One weight file and what is wrong with it."""

    file: str
    size: int
    """Bytes that hubextrap.json says; 0 for a file that it does not name."""
    problem: str | None
    """None: it has the size and the sha256 that hubextrap.json says."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found."""

    name: str
    """What was looked at, with its commit where it is on the Hub."""
    files: tuple[VerifiedFile, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """One line a file that is not as it should be; empty when all are."""
        return tuple(f"{file.file}: {file.problem}" for file in self.files if file.problem)


def verify(reference: Path | str, *, progress: Progress | None = None) -> Verification:
    """Recompute size and sha256 of every shard that ``hubextrap.json`` names.

    A revision on the Hub is streamed by ranges and nothing of it touches the disk.

    Args:
        reference: a local folder, or ``owner/name[@revision][:folder]``.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        CorruptFile: it holds no valid hubextrap.json, so there is nothing to verify against.
        SourceError: bytes could not be read.
    """
    with closing(_open(reference)) as source:
        files = source.files()
        if PROVENANCE_FILE not in files:
            raise CorruptFile(
                f"{source.name}: holds no {PROVENANCE_FILE}; only what hubextrap merged can be verified"
            )
        where = f"{source.name}/{PROVENANCE_FILE}"
        shards = read_provenance(source.read_file(PROVENANCE_FILE), where).shards
        total = sum(shard.size for shard in shards if _size_problem(source, shard) is None)
        with (progress or SilentProgress()).stage("verify", total) as stage:
            checked = [VerifiedFile(s.file, s.size, _problem(source, s, stage)) for s in shards]
        named = {shard.file for shard in shards}
        strays = sorted(file for file in files if file.endswith(".safetensors") and file not in named)
        checked += [VerifiedFile(file, 0, f"is not named in {PROVENANCE_FILE}") for file in strays]
        return Verification(source.name, tuple(checked))


def _open(reference: Path | str) -> Source:
    if isinstance(reference, Path):
        return LocalSource(reference)
    where = parse_reference(reference)
    if where.folder is not None:
        return LocalSource(where.folder, reference)
    commit = commit_of(where.repo, where.revision, reference)
    return RemoteSource(where.repo, commit, where.path, f"{reference} ({commit})")


def _problem(source: Source, shard: OutputShard, stage: Stage) -> str | None:
    if problem := _size_problem(source, shard):
        return problem
    found = sha256_of(source, shard.file, stage.advance)
    return None if found == shard.sha256 else f"has sha256 {found}, should have {shard.sha256}"


def _size_problem(source: Source, shard: OutputShard) -> str | None:
    info = source.files().get(shard.file)
    if info is None:
        return "is missing"
    return None if info.size == shard.size else f"has {info.size:,} bytes, should have {shard.size:,}"
