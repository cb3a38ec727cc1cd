"""Where a merge lies until it is whole: a place of its own that outlives a kill, with one journal per target.

A local output is made in ``.NAME.partial`` beside its place: ``model/`` becomes the output by a rename,
``lock`` keeps a second run out, ``journal-*.jsonl`` say what is finished. A prediction that goes straight to
the Hub has the same in ``hubextrap/push`` under huggingface_hub's home (HF_HOME), with ``scratch/`` for the
shards that are on their way. A place goes when its merge succeeds, and what was to follow with it (a push, an
evaluation), or when it fails with nothing worth keeping in it.
A walk, which comes before the merge whose step it chooses, keeps what it has measured in a place of its own,
``.NAME.walk`` or ``hubextrap/walk``, until that merge succeeds.
`hubextrap.durable.places` says how a place is known.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.api.recorded import (
    is_submitted,
    refuse_at_work,
    take_records,
    units_on_record,
)
from hubextrap.digests import sha256_hex
from hubextrap.durable.atomic import is_new_name, writing
from hubextrap.durable.places import REMEDY, is_marked, lock_folder, make_marked, remove_marked, remove_strays
from hubextrap.errors import CheckpointError, OutputError
from hubextrap.output_files import take_after
from hubextrap.progress import SilentProgress
from hubextrap.tensors import Journal, LocalSource, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe

WORK = "work"
"""What lies there of work that others do: `work.plan`, `work.records`."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A place that this run alone holds."""

    folders: tuple[Path, ...]
    """Where shards are written, one per target."""
    journals: tuple[Journal, ...]
    """One per target."""
    work: Path
    """Where a plan and its records lie, if others do the work."""
    fingerprint: Mapping[str, str]
    """What decides the bytes that are made."""


@contextmanager
def staged(
    out: Path,
    folders: Sequence[str],
    fingerprint: Mapping[str, str],
    progress: Progress,
    *,
    keep: bool = False,
    hashed: bool = True,
    detached: bool = False,
) -> Iterator[Staging]:
    """A place to make ``out`` in; it becomes ``out`` when all went well.

    Args:
        folders, keep, hashed, detached: as for `in_place`.

    Raises:
        OutputError: as `in_place`, or ``out`` came to be there in the meantime.
    """
    final = out.resolve()
    with in_place(
        out, folders, fingerprint, progress, keep=keep, hashed=hashed, detached=detached
    ) as staging:
        yield staging
        try:
            mode = stat.S_IMODE(final.stat().st_mode) if final.exists() else None
            # takes the place of an empty folder, and of nothing else
            (place_of(out) / "model").replace(final)
            if mode is not None:
                final.chmod(mode)
        except OSError as error:
            raise OutputError(
                f"{out}: {error.strerror}; somebody else wrote there: move that away, then run the same "
                "command again",
                file=out,
            ) from error


@contextmanager
def in_place(
    out: Path,
    folders: Sequence[str],
    fingerprint: Mapping[str, str],
    progress: Progress,
    *,
    keep: bool = False,
    hashed: bool = True,
    detached: bool = False,
    clean: bool = True,
) -> Iterator[Staging]:
    """The place in which ``out`` is made.

    What an earlier run left is checked (size and sha256), and taken over if it was making the same.

    Args:
        folders: the target's folders in ``out``, relative to it.
        keep: leave the place when all went well, with the journals for `finished_before`.
        hashed: False compares only the sizes of what an earlier run left: its bytes were others' work.
        detached: for work that is submitted, or was; else a place where that lies is refused.
        clean: False leaves files that are not finished: others may be making them.

    Raises:
        OutputError: it cannot be made, or another run holds it.
    """
    final = out.resolve()
    place = place_of(out)
    with _held(place, str(out), progress, keep=keep, like=final) as journals:
        model = place / "model"
        refuse_at_work(place / WORK, str(out), fingerprint, detached=detached)
        _open_journals(journals, place, len(folders), fingerprint, progress, str(out))
        take_records(place / WORK, fingerprint, journals)
        if not any(journal.finished for journal in journals):
            shutil.rmtree(model, ignore_errors=True)
        with writing(out, REMEDY):
            for made in (places := [model / folder for folder in folders]):
                made.mkdir(parents=True, exist_ok=True)
            take_after(final, model, also=stat.S_IRWXU)
        for made, journal in zip(places, journals, strict=True):
            _check_shards(made, journal, progress, hashed=hashed, clean=clean)
        yield Staging(tuple(places), tuple(journals), place / WORK, fingerprint)


@contextmanager
def push_state(
    target: PushTarget, fingerprint: Mapping[str, str], progress: Progress, *, detached: bool = False
) -> Iterator[Staging]:
    """The place of a push to ``target`` without a local output. The journal stays until the place is removed.

    Raises:
        OutputError: it cannot be made, or another run on this machine holds it.
    """
    place = push_place(target)
    with _held(place, target.name, progress, keep=True) as journals:
        refuse_at_work(place / WORK, target.name, fingerprint, detached=detached)
        _open_journals(journals, place, 1, fingerprint, progress, target.name)
        scratch = place / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        with writing(place, REMEDY):
            scratch.mkdir()
        yield Staging((scratch,), tuple(journals), place / WORK, fingerprint)


def push_place(target: PushTarget) -> Path:
    """Where a push to ``target`` keeps its journal and the shards that are on their way."""
    from huggingface_hub import constants

    kind = "pull request" if target.create_pr else "branch"
    key = sha256_hex(f"{constants.ENDPOINT} {target.name} {kind}")[:12]
    name = re.sub(r"[^\w.-]+", "--", target.name)[:100]
    return Path(constants.HF_HOME, "hubextrap", "push", f"{name}-{key}")


def walk_place(recipe: Recipe, out: Path | None, targets: Sequence[PushTarget]) -> Path:
    """Where a walk keeps what it has measured: beside an output, or else under huggingface_hub's home."""
    if out is not None:
        return _walked_beside(place_of(out))
    from huggingface_hub import constants

    name = push_place(targets[0]).name if targets else recipe.fingerprint()[:12]
    return Path(constants.HF_HOME, "hubextrap", "walk", name)


@contextmanager
def held_place(place: Path, what: str, progress: Progress, *, like: Path | None) -> Iterator[None]:
    """Hold a place, which is made if need be, and stays.

    Args:
        like: a folder whose mode and owner it gets, if that is there.

    Raises:
        OutputError: it cannot be made, or another run holds it.
    """
    descriptor = lock_folder(place, what, progress.say, make=lambda: make_marked(place, like))
    try:
        yield
    finally:
        os.close(descriptor)


def finished_before(
    out: Path,
    folders: Sequence[str],
    fingerprint: Mapping[str, str],
    files: Collection[str],
    check_inputs: Callable[[Sequence[Journal]], None],
    progress: Progress,
) -> list[Journal] | None:
    """The closed journals of the same merge, if an earlier run came as far as its output, and no further.

    That is a run whose push or evaluation failed. Nothing in ``out`` is touched; its shards are hashed.

    Args:
        files: the shards that each target has.
        check_inputs: has the journals start over where the checkpoints hold other bytes by now.

    Raises:
        OutputError: another run is at it.
        SourceError: a checkpoint could not be read again.
    """
    place = place_of(out)
    if not may_be_finished(out):
        return None
    descriptor = lock_folder(place, str(out), progress.say)
    journals: list[Journal] = []

    def whole() -> bool:
        return all(set(files) <= journal.finished.keys() for journal in journals)

    try:
        if not all(path.is_file() for path in _journal_paths(place, len(folders))):
            return None
        _open_journals(journals, place, len(folders), fingerprint, SilentProgress(), str(out))
        if not (whole() and all((out / folder).is_dir() for folder in folders)):
            return None
        for folder, journal in zip(folders, journals, strict=True):
            _strike_changed(out / folder, journal, progress)
        if whole():
            check_inputs(journals)
        return journals if whole() else None
    finally:
        for journal in journals:
            journal.close()
        os.close(descriptor)


def may_be_finished(out: Path) -> bool:
    """Whether an output lies beside journals: an earlier run's, which came as far as that."""
    try:
        place = place_of(out)
        return (
            is_marked(place)
            and out.is_dir()
            and not (place / "model").exists()
            and (place / "journal-0.jsonl").is_file()
        )
    except (OSError, ValueError):  # no name of a folder
        return False


def remove_leftover(out: Path) -> None:
    """Remove what is left beside an output if the run was killed just after the output had got its name."""
    try:
        place = place_of(out)
    except (OSError, ValueError):  # no name of a folder
        return
    remove_strays(place.parent)
    if is_marked(place) and out.is_dir() and not (place / "model").exists():
        remove_unless_held(place)
    walked = _walked_beside(place)
    if is_marked(walked) and out.is_dir() and any(out.iterdir()) and not place.exists():
        remove_unless_held(walked)


def remove_unless_held(place: Path) -> None:
    """Remove a place, unless another run begins there just now."""
    try:
        lock = lock_folder(place, str(place), lambda line: None)
    except OutputError:
        return
    remove_marked(place)
    os.close(lock)


def _walked_beside(place: Path) -> Path:
    return place.with_name(f"{place.name.removesuffix('.partial')}.walk")


def staged_bytes(out: Path) -> int:
    """Bytes on the disk that earlier runs left for ``out``."""
    place = place_of(out)
    if not is_marked(place):
        return 0
    return sum(path.stat().st_blocks * 512 for path in place.rglob("*") if path.is_file())


def place_of(out: Path) -> Path:
    final = out.resolve()
    if not final.name:
        raise OutputError(f"{out}: is the root of the file system; choose another --out", file=out)
    return final.with_name(f".{final.name}.partial")


@contextmanager
def _held(
    place: Path, what: str, progress: Progress, *, keep: bool = False, like: Path | None = None
) -> Iterator[list[Journal]]:
    """Hold ``place``. It stays only if an error ends the run and the journals name finished shards.

    Args:
        keep: leave it when all went well too.
        like: a folder whose mode and owner it gets, if that is there.
    """
    fresh = not place.exists()
    journals: list[Journal] = []
    descriptor = lock_folder(place, what, progress.say, make=lambda: make_marked(place, like))
    try:
        try:
            yield journals
        except BaseException as error:
            finished = max((len(journal.finished) for journal in journals), default=0)
            kept = len(journals) * max(finished, units_on_record(place / WORK))
            # What is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping.
            if is_submitted(place / WORK):
                pass  # others are at work there
            elif isinstance(error, CheckpointError) or (not kept and (journals or fresh)):
                remove_marked(place)
            elif kept:
                progress.say(
                    f"{what}: {kept} finished shard{'s' * (kept > 1)} kept; run the same command again to "
                    "go on"
                )
            raise
        if not keep:
            remove_marked(place)
    finally:
        for journal in journals:
            journal.close()
        os.close(descriptor)


def _open_journals(
    journals: list[Journal],
    place: Path,
    count: int,
    fingerprint: Mapping[str, str],
    progress: Progress,
    what: str,
) -> None:
    """Fill ``journals``; those of something else begin anew."""
    changed: dict[str, None] = {}
    for path in _journal_paths(place, count):
        journals.append(Journal(path, fingerprint))
        changed |= dict.fromkeys(journals[-1].changed)
    if changed:
        progress.say(
            f"{what}: starting over, as {_listed(tuple(changed))} changed since the run that was stopped"
        )
        for journal in journals:
            journal.close()
        for path in place.glob("journal-*.jsonl"):  # there may be more, of a recipe with more targets
            path.unlink()
        journals[:] = [Journal(path, fingerprint) for path in _journal_paths(place, count)]


def _journal_paths(place: Path, count: int) -> list[Path]:
    return [place / f"journal-{number}.jsonl" for number in range(count)]


def _listed(parts: Sequence[str], most: int = 4) -> str:
    shown = list(parts[:most]) + ([f"{len(parts) - most} more"] if len(parts) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _check_shards(folder: Path, journal: Journal, progress: Progress, *, hashed: bool, clean: bool) -> None:
    """Strike from ``journal`` what is not in ``folder`` as it was written, and remove all else from there."""
    for path in folder.iterdir():
        if not clean and is_new_name(path.name):
            continue
        if path.is_dir():  # of chat templates, which come after the shards
            shutil.rmtree(path)
        elif path.name not in journal.finished or not path.name.endswith(".safetensors"):
            path.unlink()
    _strike_changed(folder, journal, progress, hashed=hashed)


def _strike_changed(folder: Path, journal: Journal, progress: Progress, *, hashed: bool = True) -> None:
    """Strike from ``journal`` what is not in ``folder`` as it was written."""
    if not journal.finished:
        return
    with (
        closing(LocalSource(folder)) as source,
        (progress if hashed else SilentProgress()).stage(
            "check", sum(shard.size for shard in journal.finished.values())
        ) as stage,
    ):
        for shard in tuple(journal.finished.values()):
            info = source.files().get(shard.file)
            if info is None:
                wrong = "is gone"
            elif info.size != shard.size or (
                hashed and sha256_of(source, shard.file, stage.advance) != shard.sha256
            ):
                wrong = "has other bytes than were written"
            else:
                continue
            progress.say(f"{shard.file}: {wrong}; it is made again")
            del journal.finished[shard.file]
