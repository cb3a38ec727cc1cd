"""Where an output goes: checked before the first byte; and the small files beside its shards."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from hubextrap.api.staging import check_place, check_place_of, push_place, staged_bytes
from hubextrap.errors import OutputError
from hubextrap.output_files import is_mount_point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.engine import MergePlan
    from hubextrap.hub import PushTarget

SHARDS_ON_THEIR_WAY = 2
"""Shards of a push that lie on this disk at the same time: one is written, one is uploaded."""


def target_folders(steps: Sequence[int]) -> list[str]:
    """Each prediction's folder in ``--out``: that folder itself, or subfolders where there are several."""
    return [""] if len(steps) == 1 else [f"step_{step}" for step in steps]


def check_output(out: Path, plan: MergePlan) -> None:
    """Refuse a place that cannot take the plan's outputs, or that holds something already.

    Raises:
        OutputError: says which and what to do.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: is there already and is no folder; choose another --out")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out}: is there already and not empty; remove it, or choose another --out")
    if is_mount_point(out):
        raise OutputError(
            f"{out}: is a mount point, and a finished output takes the place of its folder; name one in it, "
            f"as {out / 'model'}"
        )
    check_place_of(out)
    parent = _existing(out.absolute().parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{out}: {parent} cannot be written to; check its permissions, or choose another --out"
        )
    free, size = shutil.disk_usage(parent).free + staged_bytes(out), plan.total_bytes_written
    if free < size:
        raise OutputError(
            f"{out}: {size:,} bytes are needed and {free:,} are free; make room, or choose another --out"
        )


def check_scratch(targets: Sequence[PushTarget], plan: MergePlan) -> None:
    """Refuse a push whose shards would not fit on this disk on their way.

    Raises:
        OutputError: says how much is needed and where.
    """
    for target in targets:
        check_place(push_place(target))
    sizes = sorted((shard.size for shard in plan.shards), reverse=True)
    size = len(targets) * sum(sizes[:SHARDS_ON_THEIR_WAY])
    place = _existing(push_place(targets[0]).absolute())
    free = shutil.disk_usage(place).free
    if free < size:
        raise OutputError(
            f"{place}: {size:,} bytes are needed for shards on their way to the Hub and {free:,} are free; "
            "make room, or set HF_HOME to a folder on another disk"
        )


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files, forced to disk.

    Raises:
        OutputError: the disk did not take one.
    """
    for name, content in files.items():
        try:
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
            raise OutputError(
                f"{folder / name}: cannot be written: {error.strerror}; make room, or choose another --out"
            ) from error
