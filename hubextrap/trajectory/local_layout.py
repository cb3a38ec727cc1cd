"""Checkpoints in the subfolders of a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import entries_of
from hubextrap.trajectory.checkpoint import Checkpoint, Series
from hubextrap.trajectory.series import series_in_folders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from hubextrap.trajectory.search import Search


def folders(search: Search) -> list[Series]:
    """One checkpoint per subfolder of a local folder."""
    folder = search.reference.folder
    if folder is None:
        return []

    def at(subfolder: str, step: int) -> Checkpoint:
        return Checkpoint(step, None, "", None, str(folder / subfolder))

    series, others = series_in_folders(files_under(folder), search.read, at, "folders")
    search.seen.extend(others)
    return series


def files_in(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of the files directly in a folder."""
    return sorted((name, entry.size) for name, entry in entries_of(folder).items())


def files_under(folder: Path) -> Iterator[tuple[str, int]]:
    """Path, relative to the folder, and bytes of every file below it."""
    return ((path, status.st_size) for path, status in statuses_under(folder))


def statuses_under(folder: Path, apart: Collection[str] = ()) -> Iterator[tuple[str, os.stat_result]]:
    """The same with all that the disk says of each file. Some may be gone by then.

    Args:
        apart: real paths of folders that are not looked into.
    """
    # Checkpoints are often linked to from elsewhere; a link to a folder above would never end.
    for here, subfolders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(here), *(str(parent) for parent in Path(os.path.realpath(here)).parents)}
        above.update(apart)
        subfolders[:] = sorted(
            name for name in subfolders if name[0] != "." and os.path.realpath(Path(here, name)) not in above
        )
        for name in files:
            file = Path(here, name)
            try:
                status = file.stat()
            except OSError:  # a broken link, or a trainer has removed it just now
                continue
            yield file.relative_to(folder).as_posix(), status
