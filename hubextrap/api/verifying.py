"""`verify`: whether a folder holds the prediction that its hubextrap.json describes, and nothing else."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.reading import read_adapters
from hubextrap.errors import CheckpointError, CorruptFile, SourceError
from hubextrap.hub import PROVENANCE_FILE, OutputShard, read_provenance
from hubextrap.hub.left_behind import is_code
from hubextrap.hub.loadable import is_harmless, leads_elsewhere
from hubextrap.hub.provenance_checks import OWN_FILES
from hubextrap.hub.side_files import is_side_file
from hubextrap.notebooks import counted, one_line
from hubextrap.progress import Progress, SilentProgress
from hubextrap.tensors import LocalSource, read_layout, sha256_of
from hubextrap.tensors.bucket import hub_source
from hubextrap.trajectory import Pins, parse_reference
from hubextrap.trajectory.elsewhere import models_elsewhere, pinned_commit
from hubextrap.trajectory.hub_files import list_files
from hubextrap.trajectory.reference import Reference, reference_text
from hubextrap.trajectory.weights import INDEX, SINGLE

if TYPE_CHECKING:
    from hubextrap.hub import Provenance
    from hubextrap.progress import Stage
    from hubextrap.tensors.interfaces import Source

UNNAMED = f"is not named in {PROVENANCE_FILE}"
_SAID = 400


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One file and what is wrong with it."""

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
    """Those that hubextrap.json names, weights first, and those that should not be there."""
    not_covered: tuple[str, ...] = ()
    """Files of which hubextrap.json does not say what they should hold: it was written before it named others
    than weights."""

    def __repr__(self) -> str:
        problems = counted(len(self.problems), "problem") if self.problems else "no problems"
        return one_line(self, self.name, counted(len(self.files), "file"), problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per file that is not as it should be; empty when all are."""
        return tuple(f"{file.file}: {file.problem}" for file in self.files if file.problem)


def verify(reference: Path | str, *, progress: Progress | None = None) -> Verification:
    """Compare a folder with its ``hubextrap.json``: these files, and no other weights or code.

    Size and sha256 of every file that it names are computed again. The weights have to be what a loader takes
    from such a folder, and nothing else there, in subfolders too, may be weights, code or settings. The card
    may have been edited, and documents, pictures, data and logs may have come. A revision on the Hub is
    streamed by ranges and nothing of it touches the disk.

    Args:
        reference: a local folder, or ``owner/name[@revision][:folder]``.

    Raises:
        ReferenceNotFound, AccessDenied: the reference leads nowhere, or is not open to this token.
        CorruptFile: it holds no valid hubextrap.json, so there is nothing to verify against.
        SourceError: bytes could not be read.
    """
    opened, present = _open(reference)
    with closing(opened) as source:
        files = source.files()
        if PROVENANCE_FILE not in files:
            elsewhere = _predictions_elsewhere(reference)
            raise CorruptFile(
                f"{source.name}: holds no {PROVENANCE_FILE}; only what hubextrap merged can be verified"
                + elsewhere,
                file=PROVENANCE_FILE,
            )
        where = f"{source.name}/{PROVENANCE_FILE}"
        provenance = read_provenance(source.read_file(PROVENANCE_FILE), where)
        named = (*provenance.shards, *(provenance.files or ()))
        total = sum(file.size for file in named if _size_problem(source, file) is None)
        with (progress or SilentProgress()).stage("verify", total) as stage:
            checked = [VerifiedFile(file.file, file.size, _problem(source, file, stage)) for file in named]
        strange, not_covered = _unnamed(present, provenance)
        checked += [VerifiedFile(file, 0, UNNAMED) for file in strange]
        bad = {file.file for file in checked if file.problem}
        checked += [
            VerifiedFile(file, 0, text) for file, text in _elsewhere(source).items() if file not in bad
        ]
        if not bad and (problem := _weights_problem(source, provenance)):
            checked.append(VerifiedFile(PROVENANCE_FILE, 0, problem))
        return Verification(source.name, tuple(checked), not_covered)


def _open(reference: Path | str) -> tuple[Source, list[str]]:
    """The source, and all files there, in subfolders too, by their path."""
    where = None if isinstance(reference, Path) else parse_reference(reference_text(reference))
    if where is None or where.folder is not None:
        folder = Path(reference) if where is None or where.folder is None else where.folder
        return LocalSource(folder, str(reference)), _all_files(folder)
    commit = pinned_commit(where, Pins(), predicted=True)
    source = hub_source(where.repo, commit, where.path, f"{reference} ({commit})")
    listed = list_files(where.repo, commit, where.path, source.name, recursive=True) or []
    prefix = f"{where.path}/" if where.path else ""
    return source, [file.path.removeprefix(prefix) for file in listed]


def _predictions_elsewhere(reference: Path | str) -> str:
    """What the message about a place without a prediction says of other places."""
    where = (
        Reference(str(reference), reference) if isinstance(reference, Path) else parse_reference(reference)
    )
    found = models_elsewhere(where, Pins(), predicted=True)
    return found and f"; {found}"


def _all_files(folder: Path) -> list[str]:
    """All below ``folder`` but git's own; links to folders are listed, not followed."""

    def fail(error: OSError) -> None:
        raise SourceError(
            f"{error.filename}: cannot be listed: {error.strerror}; check its permissions",
            file=error.filename,
        ) from error

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        here = Path(place)
        if here == folder and ".git" in folders:
            folders.remove(".git")
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return found


def _unnamed(present: list[str], provenance: Provenance) -> tuple[list[str], tuple[str, ...]]:
    """Files that should not be there, and files of which it cannot be said; sorted."""
    named = {file.file for file in (*provenance.shards, *(provenance.files or ()))}
    others = sorted(set(present) - named - set(OWN_FILES))
    strange = [file for file in others if not is_harmless(file)]
    if provenance.files is not None:
        return strange, ()
    beside = [file for file in others if is_side_file(file) or file == INDEX]
    not_covered = [file for file in beside if not is_code(file)]  # what a merge writes beside the weights
    return sorted(set(strange).difference(not_covered)), tuple(not_covered)


def _elsewhere(source: Source) -> dict[str, str]:
    """What is wrong with each configuration that sends a loader elsewhere."""
    configurations = [file for file in sorted(source.files()) if file.endswith("config.json")]
    found = {file: leads_elsewhere(source.read_file(file)) for file in configurations}
    return {file: problem for file, problem in found.items() if problem}


def _weights_problem(source: Source, provenance: Provenance) -> str | None:
    """What keeps the weights that it names from being the ones that a loader takes from the folder."""
    named = {shard.file for shard in provenance.shards}
    if not named:
        return "names no weight files"
    try:
        adapter = CONFIG_FILE in source.files() and SINGLE not in source.files()
        layout = read_adapters([source])[0].layout if adapter else read_layout(source)
        taken = {shard.file for shard in layout.shards}
    except CheckpointError as error:
        said = str(error).removeprefix(f"{source.name}: ").removeprefix(f"{source.name}/")
        return f"does not fit what lies beside it: {said[:_SAID]}"
    if taken != named:
        odd = min(taken ^ named)
        what = f"does not name {odd}, which a loader takes"
        return what if odd in taken else f"names {odd}, which no loader takes"
    return None


def _problem(source: Source, file: OutputShard, stage: Stage) -> str | None:
    if problem := _size_problem(source, file):
        return problem
    found = sha256_of(source, file.file, stage.advance)
    return None if found == file.sha256 else f"has sha256 {found}, should have {file.sha256}"


def _size_problem(source: Source, file: OutputShard) -> str | None:
    info = source.files().get(file.file)
    if info is None:
        return "is missing"
    return None if info.size == file.size else f"has {info.size:,} bytes, should have {file.size:,}"
