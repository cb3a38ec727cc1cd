"""Locks of files: the system releases them when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def open_held(path: Path, flags: int, *, or_fail: bool = False) -> int:
    """A descriptor of the regular file at ``path``, made if the flags say so, that holds its lock.

    Where the file system has no locks, the file is open all the same, unless ``or_fail``.

    Raises:
        BlockingIOError: another process holds it. OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            unlocked = take_lock(descriptor)
            if unlocked and or_fail:
                raise OSError(errno.ENOLCK, unlocked, str(path))
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed before we had it


def take_lock(descriptor: int) -> str | None:
    """Take the lock of an open file; what says that this file system has none, where that is so.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None
        return error.strerror or str(error)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that lies at ``path`` now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
