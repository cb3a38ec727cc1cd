"""Push a folder that holds a model."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hubextrap.containment import entries_of, name_problem, open_regular, read_named, shown
from hubextrap.errors import CorruptFile, PushError
from hubextrap.foreign_data import parse_json
from hubextrap.hub.card import with_target
from hubextrap.hub.commit import PushResult, check_card, check_files, commit_files
from hubextrap.hub.outgoing import OutgoingFile
from hubextrap.hub.provenance import PROVENANCE_FILE, OutputShard, Provenance
from hubextrap.hub.provenance_checks import OWN_FILES, read_provenance
from hubextrap.hub.target import check_target
from hubextrap.progress import SilentProgress
from hubextrap.tensors.headers import HEADER_LIMIT
from hubextrap.trajectory import Pins
from hubextrap.trajectory.elsewhere import models_elsewhere
from hubextrap.trajectory.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hubextrap.hub.target import PushTarget
    from hubextrap.progress import Progress, Stage

_READ_SIZE = 2**20


def push_folder(
    folder: Path,
    target: PushTarget,
    progress: Progress | None = None,
    *,
    made: Provenance | None = None,
) -> PushResult:
    """Push every file of ``folder`` (hidden ones excepted) as one commit.

    The repo and the branch are created where they are not there; weights, configuration, tokenizer and chat
    templates of an older model at that revision, and all that an earlier prediction brought, go in the same
    commit. Where ``hubextrap.json`` is among the files, the weights must be the ones that it describes, and
    the card's snippet is made to load the target.

    Raises:
        PushError: the folder holds no whole model, or the Hub did not take it; nothing was committed then.
    """
    progress = progress or SilentProgress()
    paths = _model_files(folder)
    check_files(target, {name: path.stat().st_size for name, path in paths.items()})
    provenance = _provenance_of(folder, paths)
    if made is not None:
        _check_as_made(folder, paths, made)
    card = _card_for(target, paths["README.md"]) if "README.md" in paths else None
    state = check_target(target)
    if card is not None and not OutgoingFile("README.md", card).same_as(state.files.get("README.md")):
        check_card(target, card)  # which the Hub has not taken before
    digests = _hash(paths, progress)
    for named in _named(provenance):
        if digests[named.file] != named.sha256:
            raise _other(folder, named.file, "has other bytes (sha256)")
    files = [OutgoingFile(name, path, digests[name]) for name, path in paths.items() if name != "README.md"]
    if card is not None:
        files.append(OutgoingFile("README.md", card))
    return commit_files(target, files, message=commit_message(provenance), state=state, progress=progress)


def commit_message(provenance: Provenance | None) -> str:
    """The title of the commit that brings a prediction."""
    if provenance is None:
        return "Upload model with hubextrap"
    steps = provenance.steps
    source = f"step {steps[0]}"
    if len(steps) > 1:
        source = f"{len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"
    what = "Merge" if provenance.target_step is None else f"Predict step {provenance.target_step}"
    return f"{what} from {source} ({provenance.merge_method})"


def _model_files(folder: Path) -> dict[str, Path]:
    """The folder's files by their path in the repo."""
    if not folder.is_dir():
        raise PushError(
            f"{folder}: no such folder; `hubextrap merge RECIPE --out {folder}` would write it", file=folder
        )
    files = dict(sorted(_files_under(folder)))
    if not any("/" not in name and name.endswith(".safetensors") for name in files):
        elsewhere = models_elsewhere(Reference(str(folder), folder), Pins())
        what = f"{folder}: holds no .safetensors file, so no model to push"
        raise PushError(f"{what}; {elsewhere or 'give the folder of a merged model'}", file=folder)
    for name in [name for name in files if "/" not in name and name.endswith(".safetensors.index.json")]:
        for shard in _shards_of(files[name]):
            if shard not in files:
                raise PushError(
                    f"{folder}: {shard} is named in {name} but is not there; merge again, or restore it",
                    file=folder,
                )
    return files


def _files_under(folder: Path, inside: str = "") -> Iterator[tuple[str, Path]]:
    """Path in the repo, and place on the disk, of every file that is not hidden."""
    here = folder / inside
    try:
        entries, folders = entries_of(folder, inside), sorted(path.name for path in here.iterdir())
    except OSError as error:
        raise PushError(
            f"{here}: cannot be listed ({error.strerror}); check its permissions", file=here
        ) from error
    prefix = f"{inside}/" if inside else ""
    for name, entry in entries.items():
        if name.startswith("."):
            continue
        if entry.problem is not None:
            raise PushError(f"{folder}/{shown(prefix + name)}: {entry.problem}", file=prefix + name)
        yield prefix + name, entry.path
    for name in folders:
        if name in entries or name.startswith("."):
            continue
        problem = name_problem(name)
        if (here / name).is_symlink():
            problem = "is a link to a folder; put a copy of the folder in its place, or remove the link"
        if problem:
            raise PushError(f"{folder}/{shown(prefix + name)}: {problem}", file=prefix + name)
        yield from _files_under(folder, prefix + name)


def _shards_of(index: Path) -> list[str]:
    data, remedy = read_named(index), "merge again, or restore it"
    try:
        content = parse_json(data, str(index), error=PushError, remedy=remedy, limit=HEADER_LIMIT)
        return sorted(set(content["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise PushError(f"{index}: not a valid index of shards ({error}); {remedy}", file=index) from error


def _hash(paths: dict[str, Path], progress: Progress) -> dict[str, str]:
    """sha256 of every file, by name."""
    total = sum(path.stat().st_size for path in paths.values())
    with progress.stage("hash", total) as stage, ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(lambda path: _sha256(path, stage), paths.values()), strict=True))


def _sha256(path: Path, stage: Stage) -> str:
    digest = hashlib.sha256()
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            while block := file.read(_READ_SIZE):
                digest.update(block)
                stage.advance(len(block))
    except OSError as error:
        raise PushError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions", file=path
        ) from error
    return digest.hexdigest()


def _provenance_of(folder: Path, paths: dict[str, Path]) -> Provenance | None:
    """What hubextrap.json says, the sizes of the files that it names being as it says."""
    if PROVENANCE_FILE not in paths:
        return None
    try:
        provenance = read_provenance(folder / PROVENANCE_FILE)
    except CorruptFile as error:
        raise PushError(str(error)) from error
    for named in _named(provenance):
        if named.file not in paths:
            raise _other(folder, named.file, "is not there")
        if paths[named.file].stat().st_size != named.size:
            raise _other(folder, named.file, "has other bytes (size)")
    return provenance


def _check_as_made(folder: Path, paths: dict[str, Path], made: Provenance) -> None:
    """Refuse a folder that is no longer what was made there; the bytes are compared as they are hashed."""
    if PROVENANCE_FILE not in paths or read_named(paths[PROVENANCE_FILE]) != made.to_bytes():
        raise PushError(
            f"{folder / PROVENANCE_FILE}: is not what was written there, and the prediction was judged with; "
            "merge again",
            file=folder / PROVENANCE_FILE,
        )
    known = {named.file for named in _named(made)} | set(OWN_FILES)
    for name in paths:
        if name not in known:
            raise PushError(
                f"{folder / name}: came there after the merge, and was not judged; take it away",
                file=folder / name,
            )


def _named(provenance: Provenance | None) -> list[OutputShard]:
    """The weights, and what was written beside them; hidden files are not pushed."""
    named = (*provenance.shards, *(provenance.files or ())) if provenance else ()
    return [file for file in named if not any(part.startswith(".") for part in file.file.split("/"))]


def _other(folder: Path, file: str, how: str) -> PushError:
    return PushError(
        f"{folder / file}: {how} than {PROVENANCE_FILE} says; merge again, or remove {PROVENANCE_FILE} to "
        "push the folder as it is",
        file=folder / file,
    )


def _card_for(target: PushTarget, path: Path) -> bytes:
    content = read_named(path)
    try:
        return with_target(content.decode(), target.repo, target.revision).encode()
    except UnicodeDecodeError as error:
        raise PushError(f"{path}: is not UTF-8 text; save it as UTF-8", file=path) from error
