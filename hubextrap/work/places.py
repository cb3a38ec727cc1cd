"""Where a plan and its records lie, so that everybody who works on it sees them."""

from __future__ import annotations

import os
import shutil
from errno import EINVAL, EISDIR
from os import PathLike
from pathlib import Path
from typing import Protocol

from hubextrap.containment import read_named
from hubextrap.durable.atomic import is_new_name, new_name, write_whole, writing
from hubextrap.errors import SourceError, wrong_argument

REMEDY = "make room or check the folder's permissions, then run the same command again"


class Place(Protocol):
    """Small files by name, each whole or not there. Any number of processes may use one at the same time."""

    name: str
    """What messages and commands call it; `open_place` takes it."""
    anywhere: bool
    """Whether machines that share no folder see it, and people who have no account on this one."""

    def read(self, file: str) -> bytes | None:
        """The content of a file; None where there is none.

        Args:
            file: its path in the place, posix.

        Raises:
            SourceError: it could not be read.
        """

    def write(self, file: str, content: bytes) -> None:
        """Make a file, or give it another content: whoever reads sees all of one or all of the other.

        Raises:
            OutputError: it could not be written.
        """

    def names(self, folder: str) -> frozenset[str]:
        """The names of the files in a folder of the place; none where there is no such folder.

        Raises:
            SourceError: they could not be listed.
        """

    def remove(self) -> None:
        """Remove all that is in the place."""


class FolderPlace:
    """A folder that all machines see under the same path.

    A file of its own, such as the plan, makes it; one in a folder of it does not. So whoever is late, with a
    unit still to record, brings back no place that was done with.
    """

    anywhere = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def read(self, file: str) -> bytes | None:
        try:
            return read_named(self.folder / file, pipes=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            what = "remove it" if error.errno in (EISDIR, EINVAL) else "check its permissions"
            said = f"{self.folder / file}: cannot be read: {error.strerror}; {what}"
            raise SourceError(said, file=self.folder / file) from error

    def write(self, file: str, content: bytes) -> None:
        path = self.folder / file
        with writing(path, REMEDY):
            if path.parent == self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
            for folder in reversed(path.relative_to(self.folder).parents[:-1]):
                (self.folder / folder).mkdir(exist_ok=True)
        write_whole(path, content, remedy=REMEDY)

    def names(self, folder: str) -> frozenset[str]:
        try:
            with os.scandir(self.folder / folder) as entries:
                return frozenset(one.name for one in entries if one.is_file() and not is_new_name(one.name))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except OSError as error:
            said = f"{self.folder / folder}: cannot be listed: {error.strerror}; check its permissions"
            raise SourceError(said, file=self.folder / folder) from error

    def remove(self) -> None:
        gone = self.folder.with_name(new_name())
        with writing(self.folder, REMEDY):
            try:
                self.folder.rename(gone)  # at once: whoever is late to write into it cannot any more
            except FileNotFoundError:
                return
        shutil.rmtree(gone, ignore_errors=True)


def open_place(name: Path | str) -> Place:
    """The place that a command names: a folder, or ``hf://buckets/OWNER/NAME/PATH``.

    Raises:
        WrongArgument: it is no such thing. SourceError: it cannot be reached.
    """
    if not isinstance(name, (str, PathLike)):
        raise wrong_argument("place", "a path, or hf://buckets/OWNER/NAME/PATH", name)
    if isinstance(name, str) and name.startswith("hf://"):
        from hubextrap.work.bucket import BucketPlace

        return BucketPlace(name)
    return FolderPlace(Path(name).absolute())
