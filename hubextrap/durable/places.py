"""The places of hubextrap's own, known by the lock in each from its first moment to its last.

A folder without such a lock is somebody's own, and is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import read_named, shown
from hubextrap.durable.atomic import is_new_name, new_name, writing
from hubextrap.durable.lock import open_held, take_lock
from hubextrap.errors import OutputError
from hubextrap.output_files import take_after

if TYPE_CHECKING:
    from collections.abc import Callable

_ELSEWHERE = "choose another --out (for what is only pushed: another HF_HOME)"
REMEDY = f"check its permissions, or {_ELSEWHERE}"
"""About a place that cannot be written."""
_LOCK = re.compile(rb" *\d* made by hubextrap\n")
"""What stands in a lock: who holds it or did, and whose it is."""


def place_problem(place: Path) -> str | None:
    """What hubextrap did not make lies at a place, if anything."""
    if not os.path.lexists(place):
        return None
    if _has_lock(place):
        planted = _planted_in(place)
        return planted and (
            f"{place}: holds {shown(planted)}, a link or a special file, which hubextrap never "
            f"made; remove the folder, or {_ELSEWHERE}"
        )
    what = "a folder" if place.is_dir() and not place.is_symlink() else "a file or a link"
    return (
        f"{place}: cannot be written: File exists: it is {what} that hubextrap did not mark as its own "
        f"(early versions set no mark); move it away, or {_ELSEWHERE}"
    )


def check_place(place: Path) -> None:
    """Refuse a place where something lies that hubextrap did not make.

    Raises:
        OutputError: names it.
    """
    if problem := place_problem(place):
        raise OutputError(problem, file=place)


def is_marked(place: Path) -> bool:
    """Whether hubextrap made the place, and all that is in it: an archive can hold such a lock too."""
    return _has_lock(place) and _planted_in(place) is None


def _has_lock(place: Path) -> bool:
    try:
        lock = read_named(place / "lock", 64, pipes=False)
    except OSError:
        return False
    return not place.is_symlink() and _LOCK.fullmatch(lock) is not None


def _planted_in(place: Path) -> str | None:
    """What lies in a place and is neither a folder nor a regular file: by a link, what is written and removed
    there would be somewhere else."""
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # another run is at it
                mode = path.lstat().st_mode
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    return str(path.relative_to(place))
    return None


def make_marked(place: Path, like: Path | None) -> None:
    """Make a place with its lock in it, at once; OSError if it cannot be made, or came to be there.

    Nothing is made where another run took it for a stray meanwhile.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(place.parent)
    fresh = place.with_name(new_name())
    fresh.mkdir()
    try:
        (fresh / "lock").write_bytes(_lock_text(0))
        if like is not None:  # what is private stays so while it is made
            take_after(like, fresh, also=stat.S_IRWXU)
        fresh.rename(place)
    except FileNotFoundError:
        return
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def remove_marked(place: Path) -> None:
    """Remove a place that this run holds, so that a kill never leaves a part of it without its lock."""
    gone = place.with_name(new_name())
    with contextlib.suppress(OSError):
        for path in list(place.iterdir()):
            if path.name == "lock":
                continue
            if path.is_dir() and not path.is_symlink():  # whole or gone for whoever looks for what is in it
                shutil.rmtree(path.rename(path.with_name(new_name())))
            else:
                path.unlink()
        place.rename(gone)
        shutil.rmtree(gone)


def remove_strays(folder: Path) -> None:
    """Remove what a kill left in ``folder`` while a place was made or removed: at most a lock in it."""
    try:
        strays = [path for path in folder.iterdir() if is_new_name(path.name)]
    except OSError:  # no folder, or not ours to read
        return
    for stray in strays:
        with contextlib.suppress(OSError):  # another run is at it, or another user's
            if _is_lock_alone(stray):
                # By a rename first: whoever is making it a place just now notices, and makes another.
                gone = stray.rename(stray.with_name(new_name()))
                (gone / "lock").unlink(missing_ok=True)
                gone.rmdir()


def _is_lock_alone(stray: Path) -> bool:
    if stray.is_symlink() or not stray.is_dir():
        return False
    names = [path.name for path in stray.iterdir()]
    return not names or (names == ["lock"] and (_has_lock(stray) or not (stray / "lock").lstat().st_size))


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
    with writing(place, REMEDY):
        while True:
            try:
                if make is None:
                    place.mkdir(parents=True, exist_ok=True)
                elif not os.path.lexists(place):
                    make()
            except OSError:
                if make is None or not os.path.lexists(place):
                    raise
                continue  # another run has made it in the meantime
            if make is not None and os.path.lexists(place):
                check_place(place)
            try:
                descriptor = open_held(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue  # the run that held it has just removed it
            except BlockingIOError:
                holder = holder_of(path)
                named = f" (process {holder})" if holder else ""
                said = f"{what}: another run is writing it{named}; wait for it to end, or stop it"
                raise OutputError(said, file=place) from None
            break
        content = os.pread(descriptor, 64, 0)
        if content and not content.strip().isdigit() and not _LOCK.fullmatch(content):
            os.close(descriptor)  # digits alone: of earlier versions
            raise OSError(errno.EEXIST, "exists, but hubextrap did not make it", str(path))
    if unlocked := take_lock(descriptor):
        say(f"{place}: this file system has no locks ({unlocked}); do not run two merges into one target")
    text = _lock_text(os.getpid())
    try:
        with writing(path, REMEDY):
            os.pwrite(descriptor, text, 0)  # over an earlier one, of the same length
            os.ftruncate(descriptor, len(text))
    except OutputError:
        os.close(descriptor)
        raise
    return descriptor


def _lock_text(process: int) -> bytes:
    return b"%19d made by hubextrap\n" % process


def holder_of(path: Path) -> int | None:
    """The process that the lock at ``path`` names; None where it names none or cannot be read."""
    try:
        number = read_named(path, 64, pipes=False).removesuffix(b" made by hubextrap\n").strip()
    except OSError:
        return None
    return int(number) if number.isdigit() and int(number) else None
