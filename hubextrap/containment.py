"""What may be read of a folder that somebody else filled, and of a file that the user names.

A folder can come out of an archive or a clone, with links, FIFOs and names that nobody would choose. Of it,
regular files are read that lie in it, and links that lead to one. Out of it lead only the links of a snapshot
in huggingface_hub's cache, to the blobs of the same repo. The folder itself may be reached by any link.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import time
from dataclasses import dataclass
from pathlib import Path

INPUT_LIMIT = 256 * 2**20
"""Bytes of a file that a user names and that is read whole, where nothing smaller is said."""

PIPE_PATIENCE = 30.0
"""Seconds in which a pipe has to bring something: ``<(command)`` is one."""

POINTER_SIZE = 1024
"""Bytes that a pointer has at most (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "Git LFS", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get ."),
    (b"# xet version ", "git-xet", "git xet checkout"),
)
"""What clones hold in the place of large files that were not downloaded: how it begins, whose it is, and what
brings the file."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_READ_SIZE = 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder."""

    path: Path
    """Where it is read: the end of the links, so not a link itself."""
    size: int
    stamp: tuple[int, ...]
    """Size, times and place: while they stay, so do the bytes."""
    problem: str | None = None
    """Why it is not read, and what to do about it."""


def entries_of(folder: Path | str, inside: str = "") -> dict[str, Entry]:
    """The files in ``folder / inside`` by name; folders, and links to such, are left out.

    Args:
        folder: out of which nothing may lead.

    Raises:
        OSError: it cannot be listed.
    """
    root = os.path.realpath(folder)
    found = {}
    with os.scandir(os.path.join(root, inside)) as entries:  # noqa: PTH118 - keeps names that are no UTF-8
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not _leads_to_a_folder(entry):
                found[entry.name] = entry_at(root, entry.path)
    return found


def entry_at(root: str, path: str) -> Entry:
    """The file at ``path``, somewhere in the folder whose real path is ``root``."""
    real = Path(path)
    try:
        status = os.lstat(path)
        if linked := stat.S_ISLNK(status.st_mode):
            real = Path(os.path.realpath(path, strict=True))
            status = os.lstat(real)
    except OSError as error:
        broken = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
        what = "is a broken link or not a regular file" if broken else f"cannot be read ({error.strerror})"
        return Entry(real, 0, (), f"{what}; remove it or put the file there")
    problem = name_problem(path.rpartition(os.sep)[2])
    if not stat.S_ISREG(status.st_mode):
        problem = f"is {kind_of(status)}, not a regular file; remove it or put the file there"
    elif linked and (astray := _leads_astray(root, real)):
        problem = f"is a link {astray} ({shown(str(real))}); put a copy of the file in place of the link"
        if path.endswith(".safetensors"):
            problem += ", or move its folder there as a whole and link that"
    if problem is None and 0 < status.st_size <= POINTER_SIZE and (of := _pointer_at(real)):
        problem = f"is a {of[0]} pointer: the file itself was not downloaded; run `{of[1]}` in {shown(root)}"
    return Entry(real, 0 if problem else status.st_size, stamp_of(status), problem)


def _pointer_at(path: Path) -> tuple[str, str] | None:
    """Whose pointer lies there, and the command that puts the file in its place; None for any other file."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            head = file.read(64)
    except OSError:  # who reads it will say it
        return None
    return next(((whose, command) for start, whose, command in _POINTERS if head.startswith(start)), None)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What shows that a file was swapped or written to: nobody can set the third of these."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that never ends
        return False


def _leads_astray(root: str, real: Path) -> str | None:
    """What is wrong with where a link in the folder ``root`` leads, if anything."""
    if real.is_relative_to(root):
        hidden = any(part.startswith(".") for part in real.relative_to(root).parts)
        return "to a hidden file" if hidden else None  # .git/config may hold a token
    return None if _is_blob_of(Path(root), real) else "that leads out of the folder"


def _is_blob_of(root: Path, real: Path) -> bool:
    """Whether ``root`` is a snapshot in huggingface_hub's cache, and ``real`` where its files lie.

    That is the repo's own ``blobs``, or what all repos of the cache share, ``blobs/<ab>/<hash>`` (since 2.0).
    """
    for snapshot in (root, *root.parents):
        repo = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name):
            shared = real.parent.parent == repo.parent / "blobs" and real.name.startswith(real.parent.name)
            return repo.name.startswith("models--") and (real.parent == repo / "blobs" or shared)
    return False


def name_problem(name: str) -> str | None:
    """Why a file of this name is not read, whatever it holds."""
    if name in ("", ".", "..") or not name.isprintable() or any(letter in name for letter in "/\\:"):
        return (
            "has a name with characters that a name must not have (control, / \\ : or not UTF-8); rename it"
        )
    return None


def leads_out(path: str) -> bool:
    """Whether a path that a Hub lists would leave the folder that it is put into."""
    return any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path


def shown(name: str) -> str:
    """A name as a message can hold it."""
    return name if name.isprintable() else ascii(name)


def kind_of(status: os.stat_result) -> str:
    """What lies there, if not a regular file."""
    return next((kind for test, kind in _KINDS if test(status.st_mode)), "a regular file")


def open_regular(path: Path) -> int:
    """A descriptor of the regular file that was seen at ``path``.

    Raises:
        OSError: it cannot be opened, or something else lies there now.
    """
    # Something else may lie there since it was looked at: follow no link, and wait for no pipe.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file any more", str(path))
    return descriptor


def regular_at(path: Path) -> Path:
    """Where the regular file lies that ``path`` leads to.

    Raises:
        OSError: there is none, or something else.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(status)}, not a file", str(path))
    return path.resolve()


def read_named(path: Path | str, limit: int = INPUT_LIMIT, *, pipes: bool = True) -> bytes:
    """The bytes of a regular file or a pipe that the user names, links followed.

    Args:
        pipes: whether one may be named: where a command reads once.

    Raises:
        OSError: it is something else, cannot be read, or holds more than ``limit``; its size is not believed.
    """
    path = Path(path)
    pipe = pipes and stat.S_ISFIFO(path.stat().st_mode)
    if not pipe:
        return _bounded(open_regular(regular_at(path)), path, limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    return _bounded(descriptor, path, limit, patience=PIPE_PATIENCE)


def _bounded(descriptor: int, path: Path | str, limit: int, *, patience: float | None = None) -> bytes:
    content = bytearray()
    deadline = time.monotonic() + (patience or 0)
    try:
        while True:
            if patience is not None:
                ready = select.poll()
                ready.register(descriptor, select.POLLIN)
                if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"it is a pipe that did not end within {patience:g} s", str(path)
                    )
            block = os.read(descriptor, min(_READ_SIZE, limit + 1 - len(content)))
            content += block
            if not block:
                return bytes(content)
            if len(content) > limit:
                raise OSError(errno.EFBIG, f"it holds more than the {limit:,} bytes that are read", str(path))
    finally:
        os.close(descriptor)
