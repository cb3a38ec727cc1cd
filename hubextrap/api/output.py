"""A local output: checked before the first byte, written beside its place, and put there by a rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hubextrap.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def output_folder(out: Path, step: int, steps: tuple[int, ...]) -> Path:
    """Where the prediction of ``step`` goes: ``out``, or a subfolder of it when there are several targets."""
    return out if len(steps) == 1 else out / f"step_{step}"


def check_output(folder: Path, size: int) -> None:
    """Refuse a place that cannot take ``size`` bytes, or that holds something already.

    Raises:
        OutputError: says which and what to do.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is there already and is no folder; choose another --out")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is there already and not empty; remove it, or choose another --out")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder}: {parent} cannot be written to; check its permissions, or choose another --out"
        )
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OutputError(
            f"{folder}: {size:,} bytes are needed and {free:,} are free; make room, or choose another --out"
        )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; it becomes ``folder`` when all went well, and goes when not.

    Raises:
        OutputError: it cannot be made, or ``folder`` came to be there in the meantime.
    """
    folder = folder.absolute()
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield staging
        try:
            staging.replace(folder)  # takes the place of an empty folder, and of nothing else
        except OSError as error:
            raise OutputError(
                f"{folder}: {error.strerror}; somebody else wrote there, choose another --out"
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files, forced to disk.

    Raises:
        OutputError: the disk did not take one.
    """
    for name, content in files.items():
        try:
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
