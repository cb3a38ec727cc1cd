"""Checkpoints in the subfolders of a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import entries_of
from hubextrap.trajectory.checkpoint import Checkpoint
from hubextrap.trajectory.series import Reader, Series, series_in_folders

if TYPE_CHECKING:
    from collections.abc import Iterator


def series_on_disk(folder: Path, read: Reader) -> tuple[list[Series], list[str]]:
    """The series among the subfolders, and the names that belong to none."""

    def at(subfolder: str, step: int) -> Checkpoint:
        return Checkpoint(step, None, "", None, str(folder / subfolder))

    return series_in_folders(_files_under(folder), read, at, "folders")


def files_in(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of the files directly in a folder."""
    return sorted((name, entry.size) for name, entry in entries_of(folder).items())


def _files_under(folder: Path) -> Iterator[tuple[str, int]]:
    # Checkpoints are often linked to from elsewhere; a link to a folder above would never end.
    for here, subfolders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(here), *(str(parent) for parent in Path(os.path.realpath(here)).parents)}
        subfolders[:] = sorted(
            name for name in subfolders if name[0] != "." and os.path.realpath(Path(here, name)) not in above
        )
        for name in files:
            file = Path(here, name)
            if file.exists():
                yield file.relative_to(folder).as_posix(), file.stat().st_size
