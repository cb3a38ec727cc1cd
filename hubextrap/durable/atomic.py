"""A file that appears whole, by a rename, with the mode and owner of the one whose place it takes.

Until then it has a name of its own beside its place, and is locked. A kill leaves it there, without the lock;
the next file that is written to that place removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from typing import TYPE_CHECKING, Any

from hubextrap.claims import sealed, unsealed
from hubextrap.containment import read_named
from hubextrap.durable.lock import open_held
from hubextrap.errors import OutputError
from hubextrap.foreign_data import parse_json
from hubextrap.output_files import refuse_file, take_after

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_NEW_NAME = re.compile(r"\.hubextrap-[0-9a-f]{16}")


def write_whole(path: Path, *parts: bytes, remedy: str, parents: bool = False) -> None:
    """Write a file beside its place, force it to disk and rename it there.

    Args:
        remedy: what the user does about it if that fails.
        parents: make the folder too.

    Raises:
        OutputError: it cannot be written, or what is there is no regular file.
    """
    with writing(path, remedy):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        refuse_file(path)
        _write(path, parts)


@contextlib.contextmanager
def writing(path: Path, remedy: str, what: str = "") -> Iterator[None]:
    """Turn an OSError about a file or folder into an OutputError that names it and says what to do."""
    try:
        yield
    except OSError as error:
        said = f"{path}: {what}cannot be written: {error.strerror}; {remedy}"
        raise OutputError(said, file=path) from error


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = None, remedy: str) -> None:
    """Write JSON with its own sha256 in it, as `write_whole` does."""
    write_whole(path, f"{json.dumps(sealed(content), indent=indent)}\n".encode(), remedy=remedy)


def read_sealed(path: Path, *, nan: bool = False) -> Any:
    """What `write_sealed` wrote; JSON that states no sha256 comes back as it is.

    Raises:
        OSError: it cannot be read. ValueError: it is no such JSON, or not as it was written.
    """
    return unsealed(parse_json(read_named(path, pipes=False), str(path), error=ValueError, nan=nan))


def new_name(start: str = "") -> str:
    """A name that no file of the user's has, random, and short enough to fit where the file's own does."""
    return f".hubextrap-{start or secrets.token_hex(4)}{secrets.token_hex(4)}"


def is_new_name(name: str) -> bool:
    """Whether `new_name` made it."""
    return _NEW_NAME.fullmatch(name) is not None


def sync_folder(folder: Path) -> None:
    """Force a rename in ``folder`` to disk, as far as this user may."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def new_file(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, to be renamed there once it is whole, and a descriptor that holds its lock.

    What killed writers to ``path`` left is removed; what others are writing there stays.

    Raises:
        OSError: it cannot be made.
    """
    _remove_strays(path)
    while True:
        staging = path.with_name(new_name(_start_for(path)))
        # before it is locked, another writer may take it for a stray, and removes it
        with contextlib.suppress(BlockingIOError):
            return staging, open_held(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def _write(path: Path, parts: tuple[bytes, ...]) -> None:
    staging, descriptor = new_file(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            take_after(path, staging)  # before there is anything to be read in it
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            staging.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise


def _remove_strays(path: Path) -> None:
    """Remove what killed writes to ``path`` left. What is being written is locked, and stays."""
    beginning = f".hubextrap-{_start_for(path)}"
    with contextlib.suppress(OSError):  # a folder that is not ours to read
        for stray in [one for one in path.parent.iterdir() if one.name.startswith(beginning)]:
            with contextlib.suppress(OSError):  # another process is at it, or it is no file
                descriptor = open_held(stray, os.O_RDONLY, or_fail=True)
                try:
                    stray.unlink()
                finally:
                    os.close(descriptor)


def _start_for(path: Path) -> str:
    """What the names of new files for one place begin with, so that no other file's are touched."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
