"""Files and folders that a user names for a command to write: what may lie there, and what passes on to them.

Outputs are regular files and folders; a link, a device, a pipe is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

from hubextrap.containment import kind_of

_MOUNTS = Path("/proc/self/mountinfo")


def file_problem(path: Path) -> str | None:
    """Why no file can be written to ``path``; None where nothing is there, or a regular file."""
    if not path.name or path.name == "..":
        return "it is a folder"
    try:
        status = os.lstat(path)
    except OSError:  # not there; what else is wrong shows when it is written
        return None
    if stat.S_ISLNK(status.st_mode):
        return "it is a link; name the file that it leads to"
    if not stat.S_ISREG(status.st_mode):
        return f"it is {kind_of(status)}, not a regular file"
    return "it is a mount point, which cannot be replaced" if is_mount_point(path) else None


def append_problem(path: Path) -> str | None:
    """Why nothing can be added to a file at ``path``, which may be mounted there, or have to be made."""
    if path.is_file() and not path.is_symlink():
        return None
    return file_problem(path) or (None if path.parent.is_dir() else f"there is no folder {path.parent}")


def refuse_file(path: Path) -> None:
    """Raise OSError with ``file_problem``, if there is one."""
    if problem := file_problem(path):
        raise OSError(errno.EINVAL, problem, str(path))


def take_after(existing: Path, new: Path, *, also: int = 0) -> None:
    """Give ``new`` the owner, mode and access list of ``existing``, as far as this user may; if it is there.

    Args:
        also: bits that the mode gets beside.
    """
    try:
        like, own = os.lstat(existing), os.lstat(new)
    except FileNotFoundError:
        return
    for owner, group in ((like.st_uid, -1), (-1, like.st_gid)):
        if owner not in (-1, own.st_uid) or group not in (-1, own.st_gid):
            with contextlib.suppress(OSError):  # only root gives files away
                os.chown(new, owner, group)
    new.chmod(stat.S_IMODE(like.st_mode) | also)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):  # no access lists on this file system
            for name in os.listxattr(existing):
                if name.startswith("system.posix_acl_"):
                    os.setxattr(new, name, os.getxattr(existing, name))


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at ``path``, be it a part of the same file system, so that no rename
    replaces it."""
    if os.path.ismount(path):
        return True
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not on Linux
        return False
    real = os.path.realpath(path)
    return any(_unescaped(line.split(" ")[4]) == real for line in lines if line.count(" ") > 4)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
