"""Checkpoints in the subfolders of a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.trajectory.checkpoint import Checkpoint, Series
from hubextrap.trajectory.series import series_in_folders, series_with_bare_numbers
from hubextrap.trajectory.weights import INNER_FOLDERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from hubextrap.trajectory.search import Search
    from hubextrap.trajectory.series import Reader


def folders(search: Search) -> list[Series]:
    """One checkpoint per subfolder of a local folder."""
    folder = search.reference.folder
    if folder is None:
        return []

    def at(subfolder: str, step: int) -> Checkpoint:
        return Checkpoint(step, None, "", None, str(folder / subfolder))

    files = list(files_under(folder, search.read))
    find = series_in_folders if search.pattern else series_with_bare_numbers
    series, others = find(files, search.read, at, "folders")
    search.seen.extend(others)
    return series


def files_under(folder: Path, read: Reader | None = None) -> Iterator[tuple[str, int]]:
    """Path, relative to the folder, and bytes of every file below it; ``read`` as `statuses_under` takes
    it."""
    return ((path, status.st_size) for path, status in statuses_under(folder, read=read))


def statuses_under(
    folder: Path, apart: Collection[str] = (), read: Reader | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """The same with all that the disk says of each file. Some may be gone by then.

    Args:
        apart: real paths of folders that are not looked into.
        read: the reader of names that say steps; links to what says one are not looked into (``LATEST``), as
            that is looked at itself; unless they say another one.
    """
    root = Path(os.path.realpath(folder))
    # Checkpoints are often linked to from elsewhere; a link to a folder above would never end.
    for here, subfolders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(here), *(str(parent) for parent in Path(os.path.realpath(here)).parents)}
        above.update(apart)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if (name[0] != "." or name in INNER_FOLDERS)
            and os.path.realpath(Path(here, name)) not in above
            and not (read is not None and _is_alias(root, Path(here, name), read))
        )
        for name in files:
            file = Path(here, name)
            try:
                status = file.stat()
            except OSError:  # a broken link, or a trainer has removed it just now
                continue
            yield file.relative_to(folder).as_posix(), status


def _is_alias(root: Path, folder: Path, read: Reader) -> bool:
    """Whether this is a link to a folder of the tree that says a step, and says no other by its own name."""
    if not folder.is_symlink():
        return False
    real = Path(os.path.realpath(folder))
    said = read(real.relative_to(root).as_posix()) if real.is_relative_to(root) else None
    own = read(folder.name)
    return said is not None and (own is None or own.step == said.step)
