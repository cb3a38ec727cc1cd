"""Where a merge lies until it is whole: a place of its own that outlives a kill, with a journal a target.

A local output is made in ``.NAME.partial`` beside its place: ``model/`` becomes the output by a rename,
``lock`` keeps a second run out, ``journal-*.jsonl`` say what is finished. A prediction that goes straight to
the Hub has the same in ``hubextrap/push`` under huggingface_hub's home (HF_HOME), with ``scratch/`` for the
shards that are on their way. A place goes when its merge succeeds, and what was to follow with it (a push, an
evaluation), or when it fails with nothing worth keeping in it.
Its lock bears hubextrap's name from the first moment to the last: a folder without such a lock is somebody's
own, and is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import read_named
from hubextrap.errors import CheckpointError, OutputError
from hubextrap.output_files import take_after
from hubextrap.progress import SilentProgress
from hubextrap.tensors import Journal, LocalSource, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from hubextrap.hub import PushTarget
    from hubextrap.progress import Progress


_LOCK = re.compile(rb" *\d* made by hubextrap\n")
"""What stands in a lock: who holds it or did, and whose it is."""


@dataclass(frozen=True, slots=True)
class Staging:
    """A place that this run alone holds."""

    folder: Path
    """Where shards are written."""
    journals: tuple[Journal, ...]
    """One a target."""


@contextmanager
def staged(
    out: Path,
    folders: Sequence[str],
    fingerprint: Mapping[str, str],
    progress: Progress,
    *,
    keep: bool = False,
) -> Iterator[Staging]:
    """A place to make ``out`` in; it becomes ``out`` when all went well.

    What an earlier run left is checked (size and sha256), and taken over if it was making the same.

    Args:
        folders: the target's folders in ``out``, relative to it.
        keep: leave the journals when all went well, for `finished_before`, until `remove_place`.

    Raises:
        OutputError: it cannot be made, another run holds it, or ``out`` came to be there in the meantime.
    """
    final = out.resolve()
    place = place_of(out)
    with _held(place, str(out), progress, keep=keep, like=final) as journals:
        model = place / "model"
        names = [f"journal-{number}.jsonl" for number in range(len(folders))]
        if _open_journals(journals, place, names, fingerprint, progress, str(out)):
            shutil.rmtree(model, ignore_errors=True)
        try:
            for folder in folders:
                (model / folder).mkdir(parents=True, exist_ok=True)
            take_after(final, model, also=stat.S_IRWXU)
        except OSError as error:
            raise _unwritable(out, error) from error
        for folder, journal in zip(folders, journals, strict=True):
            _check_shards(model / folder, journal, progress)
        yield Staging(model, tuple(journals))
        try:
            mode = stat.S_IMODE(final.stat().st_mode) if final.exists() else None
            model.replace(final)  # takes the place of an empty folder, and of nothing else
            if mode is not None:
                final.chmod(mode)
        except OSError as error:
            raise OutputError(
                f"{out}: {error.strerror}; somebody else wrote there: move that away, then run the same "
                "command again"
            ) from error


@contextmanager
def push_state(target: PushTarget, fingerprint: Mapping[str, str], progress: Progress) -> Iterator[Staging]:
    """The place of a push to ``target`` without a local output. The journal stays until `remove_place`.

    Raises:
        OutputError: it cannot be made, or another run on this machine holds it.
    """
    place = push_place(target)
    with _held(place, target.name, progress, keep=True) as journals:
        _open_journals(journals, place, ["journal-0.jsonl"], fingerprint, progress, target.name)
        scratch = place / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
        except OSError as error:
            raise _unwritable(place, error) from error
        yield Staging(scratch, tuple(journals))


def push_place(target: PushTarget) -> Path:
    """Where a push to ``target`` keeps its journal and the shards that are on their way."""
    from huggingface_hub import constants

    kind = "pull request" if target.create_pr else "branch"
    key = hashlib.sha256(f"{constants.ENDPOINT} {target.name} {kind}".encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "--", target.name)[:100]
    return Path(constants.HF_HOME, "hubextrap", "push", f"{name}-{key}")


def place_problem(place: Path) -> str | None:
    """What hubextrap did not make lies at a place, if anything."""
    if not os.path.lexists(place) or _is_marked(place):
        return None
    what = "a folder" if place.is_dir() and not place.is_symlink() else "no folder"
    return (
        f"{place}: cannot be written: File exists, {what} that hubextrap did not mark as its own (earlier "
        "versions marked none); move it away, or choose another --out (with --push alone: another HF_HOME)"
    )


def check_place(place: Path) -> None:
    """Refuse a place where something lies that hubextrap did not make.

    Raises:
        OutputError: names it.
    """
    if problem := place_problem(place):
        raise OutputError(problem)


def remove_place(place: Path) -> None:
    """Forget how an output was made, once nothing more can go wrong with it."""
    if _is_marked(place):
        _remove(place)


def finished_before(
    out: Path,
    folders: Sequence[str],
    fingerprint: Mapping[str, str],
    files: Collection[str],
    progress: Progress,
) -> list[Journal] | None:
    """The closed journals of the same merge, if an earlier run came as far as its output, and no further.

    That is a run whose push or evaluation failed. Nothing in ``out`` is touched; its shards are hashed.

    Args:
        files: the shards that each target has.

    Raises:
        OutputError: another run is at it.
    """
    place = place_of(out)
    if not may_be_finished(out):
        return None
    descriptor = lock_folder(place, str(out), progress.say)
    journals: list[Journal] = []
    try:
        names = [f"journal-{number}.jsonl" for number in range(len(folders))]
        if not all((place / name).is_file() for name in names):
            return None
        _open_journals(journals, place, names, fingerprint, SilentProgress(), str(out))
        for folder, journal in zip(folders, journals, strict=True):
            if not (set(files) <= journal.finished.keys() and (out / folder).is_dir()):
                return None
            _strike_changed(out / folder, journal, progress)
            if not set(files) <= journal.finished.keys():
                return None
    finally:
        for journal in journals:
            journal.close()
        os.close(descriptor)
    progress.say(f"{out}: is whole since an earlier run; going on with what was to follow")
    return journals


def may_be_finished(out: Path) -> bool:
    """Whether an output lies beside journals: an earlier run's, which came as far as that."""
    try:
        place = place_of(out)
        return (
            _is_marked(place)
            and out.is_dir()
            and not (place / "model").exists()
            and (place / "journal-0.jsonl").is_file()
        )
    except (OSError, ValueError):  # no name of a folder
        return False


def remove_leftover(out: Path) -> None:
    """Remove what is left beside an output if the run was killed just after the output had got its name."""
    place = place_of(out)
    if _is_marked(place) and out.is_dir() and not (place / "model").exists():
        try:
            lock = lock_folder(place, str(out), lambda line: None)
        except OutputError:
            return  # somebody begins there just now
        _remove(place)
        os.close(lock)


def staged_bytes(out: Path) -> int:
    """Bytes on the disk that earlier runs left for ``out``."""
    place = place_of(out)
    if not _is_marked(place):
        return 0
    return sum(path.stat().st_blocks * 512 for path in place.rglob("*") if path.is_file())


def place_of(out: Path) -> Path:
    final = out.resolve()
    if not final.name:
        raise OutputError(f"{out}: is the root of the file system; choose another --out")
    return final.with_name(f".{final.name}.partial")


def _is_marked(place: Path) -> bool:
    try:
        lock = read_named(place / "lock", 64, pipes=False)
    except OSError:
        return False
    return not place.is_symlink() and _LOCK.fullmatch(lock) is not None


def _make_marked(place: Path, like: Path | None) -> None:
    """Make a place with its lock in it, at once; OSError if it cannot be made, or came to be there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".hubextrap-{secrets.token_hex(8)}")
    fresh.mkdir()
    try:
        (fresh / "lock").write_bytes(_lock_text(0))
        if like is not None:  # what is private stays so while it is made
            take_after(like, fresh, also=stat.S_IRWXU)
        fresh.rename(place)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _remove(place: Path) -> None:
    """Remove a place that this run holds, so that a kill never leaves a part of it without its lock."""
    gone = place.with_name(f".hubextrap-{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        place.rename(gone)
        shutil.rmtree(gone)


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
    descriptor = lock_folder(place, what, progress.say, make=lambda: _make_marked(place, like))
    try:
        try:
            yield journals
        except BaseException as error:
            kept = sum(len(journal.finished) for journal in journals)
            # What is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping.
            if isinstance(error, CheckpointError) or (not kept and (journals or fresh)):
                _remove(place)
            elif kept:
                progress.say(
                    f"{what}: {kept} finished shard{'s' * (kept > 1)} kept; run the same command again to "
                    "go on"
                )
            raise
        if not keep:
            _remove(place)
    finally:
        for journal in journals:
            journal.close()
        os.close(descriptor)


def lock_folder(
    place: Path, what: str, say: Callable[[str], None], *, make: Callable[[], None] | None = None
) -> int:
    """Make ``place`` and take its lock, which the system releases when this process ends, however it ends.

    Args:
        make: makes it, with a lock in it, and nothing else may be there; a plain folder when None.

    Raises:
        OutputError: the place cannot be made, or another run holds it.
    """
    path = place / "lock"
    while True:
        try:
            if make is None:
                place.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(place):
                make()
        except OSError as error:
            if make is not None and os.path.lexists(place):
                continue  # another run has made it in the meantime
            raise _unwritable(place, error) from error
        if make is not None and os.path.lexists(place):
            check_place(place)
        try:
            descriptor = _open_lock(path)
        except FileNotFoundError:
            continue  # the run that held it has just removed it
        except OSError as error:
            raise _unwritable(place, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = str(holder_of(os.pread(descriptor, 64, 0)) or "")
                os.close(descriptor)
                raise OutputError(
                    f"{what}: another run is at it{f' (process {holder})' if holder else ''}; "
                    "wait for it to end, or stop it"
                ) from None
            say(
                f"{place}: no locks on this file system ({error.strerror}); "
                "do not run two merges into one target"
            )
        if _is_at(path, descriptor):
            text = _lock_text(os.getpid())
            os.pwrite(descriptor, text, 0)  # over an earlier one, of the same length
            os.ftruncate(descriptor, len(text))
            return descriptor
        os.close(descriptor)  # it was removed before we had it


def _open_lock(path: Path) -> int:
    """The lock file, made if need be; a file of that name with anything else in it is somebody's own."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    status = os.fstat(descriptor)
    content = os.pread(descriptor, 64, 0) if stat.S_ISREG(status.st_mode) else b"?"
    if not content or content.strip().isdigit() or _LOCK.fullmatch(content):  # digits: of earlier versions
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, "is there, and not hubextrap's", str(path))


def _lock_text(process: int) -> bytes:
    return b"%19d made by hubextrap\n" % process


def holder_of(lock: bytes) -> int | None:
    """The process that a lock's content names."""
    number = lock.removesuffix(b" made by hubextrap\n").strip()
    return int(number) if number.isdigit() and int(number) else None


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _open_journals(
    journals: list[Journal],
    place: Path,
    names: Sequence[str],
    fingerprint: Mapping[str, str],
    progress: Progress,
    what: str,
) -> bool:
    """Fill ``journals``; whether all of them begin anew, so that nothing in the place is of use."""
    changed: dict[str, None] = {}
    for name in names:
        journals.append(Journal(place / name, fingerprint))
        changed |= dict.fromkeys(journals[-1].changed)
    if changed:
        progress.say(
            f"{what}: starting over, as {_listed(tuple(changed))} changed since the run that was stopped"
        )
        for journal in journals:
            journal.close()
        for path in place.glob("journal-*.jsonl"):  # there may be more, of a recipe with more targets
            path.unlink()
        journals[:] = [Journal(place / name, fingerprint) for name in names]
    return not any(journal.finished for journal in journals)


def _listed(parts: Sequence[str], most: int = 4) -> str:
    shown = list(parts[:most]) + ([f"{len(parts) - most} more"] if len(parts) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _check_shards(folder: Path, journal: Journal, progress: Progress) -> None:
    """Strike from ``journal`` what is not in ``folder`` as it was written, and remove all else from there."""
    for path in folder.iterdir():
        if path.is_dir():  # of chat templates, which come after the shards
            shutil.rmtree(path)
        elif path.name not in journal.finished:
            path.unlink()
    _strike_changed(folder, journal, progress)


def _strike_changed(folder: Path, journal: Journal, progress: Progress) -> None:
    """Strike from ``journal`` what is not in ``folder`` as it was written."""
    if not journal.finished:
        return
    with (
        closing(LocalSource(folder)) as source,
        progress.stage("check", sum(shard.size for shard in journal.finished.values())) as stage,
    ):
        for shard in tuple(journal.finished.values()):
            info = source.files().get(shard.file)
            if info is None:
                wrong = "is gone"
            elif info.size != shard.size or sha256_of(source, shard.file, stage.advance) != shard.sha256:
                wrong = "has other bytes than were written"
            else:
                continue
            progress.say(f"{shard.file}: {wrong}; it is made again")
            del journal.finished[shard.file]


def _unwritable(place: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{place}: cannot be written: {error.strerror}; check its permissions, or choose another --out (with "
        "--push alone: another HF_HOME)"
    )
