"""The files of a checkpoint in a local folder: those in it, and those in the folders that belong to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.containment import entries_of
from hubextrap.trajectory.weights import inner_folders

if TYPE_CHECKING:
    from hubextrap.containment import Entry

_LINKED = "lies in a folder that is a link; copy the folder that it leads to in its place"


def entries_of_checkpoint(folder: Path | str) -> dict[str, Entry]:
    """The files by their paths from the folder (posix); none in an inner folder that is a link may be read.

    Raises:
        OSError: the folder cannot be listed.
    """
    entries = entries_of(folder)
    for inner in inner_folders(entries):
        place = Path(folder, inner)
        if place.is_dir():
            problem = _LINKED if place.is_symlink() else None
            for name, entry in entries_of(folder, inner).items():
                entries[f"{inner}/{name}"] = replace(entry, problem=problem or entry.problem)
    return entries


def files_in(folder: Path | str) -> list[tuple[str, int]]:
    """Path from the folder and bytes of each."""
    return sorted((name, entry.size) for name, entry in entries_of_checkpoint(folder).items())
