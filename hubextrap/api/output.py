"""Where outputs go: checked before the first byte; and the small files beside their shards."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from hubextrap.api.staging import place_of, push_place, staged_bytes
from hubextrap.containment import read_named
from hubextrap.durable.atomic import writing
from hubextrap.durable.places import check_place, place_problem
from hubextrap.errors import OutputError
from hubextrap.foreign_text import own_lines
from hubextrap.output_files import is_mount_point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubextrap.engine import MergePlan
    from hubextrap.hub import PushTarget

SHARDS_ON_THEIR_WAY = 2
"""Shards of a push that lie on this disk at the same time: one is written, one is uploaded."""
_JOURNAL_LINE = 1024
"""Bytes at most that a journal takes for a shard; its first line is longer, and once."""


def target_folders(steps: Sequence[int]) -> list[str]:
    """Each prediction's folder in ``--out``: that folder itself, or subfolders where there are several."""
    return [""] if len(steps) == 1 else [f"step_{step}" for step in steps]


def output_sizes(plan: MergePlan, files: Mapping[str, bytes]) -> dict[str, int]:
    """The size of every file of one output, by path."""
    return {shard.file: shard.size for shard in plan.shards} | {
        file: len(content) for file, content in files.items()
    }


def check_output(out: Path, outputs: Mapping[str, Mapping[str, int]], *, may_be_there: bool = False) -> None:
    """Refuse a place that cannot take outputs, or that holds something already.

    Args:
        outputs: the files of each folder in ``out``, with their sizes.
        may_be_there: what is there is no reason, as it is these outputs.

    Raises:
        OutputError: all that is wrong and what to do.
    """
    try:
        problems = _there_already(out) if not may_be_there else []
        problems += _place_problems(out, outputs) or _room_problems(out, outputs)
    except OSError as error:
        problems = [f"{out}: {error.strerror}; choose another --out"]
    except ValueError:  # a null byte, or what no name on this disk can hold
        problems = [f"{str(out)!r}: cannot be the name of a folder; choose another --out"]
    if problems:
        raise OutputError(own_lines(*problems), file=out)


def _there_already(out: Path) -> list[str]:
    os.fsencode(out)
    if out.parts[:1] == ("hf:",):
        how = "name one, and `hubextrap push FOLDER OWNER/NAME@BRANCH` puts it on the Hub"
        return [f"{out}: --out is a folder on this disk; {how}"]
    if out.is_symlink():
        return [f"{out}: is a link; name the folder that it leads to, or choose another --out"]
    if out.exists() and not out.is_dir():
        return [f"{out}: is there already and is no folder; choose another --out"]
    if out.is_dir() and any(out.iterdir()):
        return [f"{out}: is there already and not empty; remove it, or choose another --out"]
    if is_mount_point(out):
        said = "is a mount point, and a finished output takes the place of its folder; name one in it, as"
        return [f"{out}: {said} {out / 'model'}"]
    return []


def _place_problems(out: Path, outputs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What of the folder above, and of the names that are to come to be."""
    place = place_of(out)
    parent = _existing(place.parent)
    if not parent.is_dir():
        return [f"{out}: {parent} is a file; choose another --out"]
    problems = []
    if problem := place_problem(place):
        problems.append(problem)
    if not os.access(parent, os.W_OK | os.X_OK):
        problems.append(
            f"{out}: {parent} cannot be written to; check its permissions, or choose another --out"
        )
    # as they are called while they are written
    paths = [
        place.relative_to(parent) / "model" / folder / part / f".{name}.part"
        for folder, files in outputs.items()
        for part, _, name in (file.rpartition("/") for file in files)
    ]
    longest = max((part for path in paths for part in path.parts), key=_bytes)
    if (most := os.pathconf(parent, "PC_NAME_MAX")) < _bytes(longest):
        problems.append(
            f"{out}: a name may have {most} bytes there, and {_shown(longest)}, as which it is made, has "
            f"{_bytes(longest)}; choose a shorter --out"
        )
    elif (most := os.pathconf(parent, "PC_PATH_MAX") - 1) < (
        needed := _bytes(str(parent)) + 1 + max(_bytes(str(path)) for path in paths)
    ):
        problems.append(
            f"{out}: a path may have {most} bytes there, and its files need {needed}; choose a shorter --out"
        )
    if _folds_case(parent):
        for files in outputs.values():
            lower: dict[str, str] = {}
            for file in files:
                if (other := lower.setdefault(file.casefold(), file)) != file:
                    problems.append(
                        f"{out}: {other} and {file} are one name on its disk; choose an --out on another one"
                    )
    return problems


def _room_problems(out: Path, outputs: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What of the disk."""
    parent = _existing(place_of(out).parent)
    disk = os.statvfs(parent)
    sizes = [size for files in outputs.values() for size in files.values()]
    block = disk.f_frsize or 1
    size = sum(-(-size // block) * block for size in sizes) + _JOURNAL_LINE * len(sizes)
    free = shutil.disk_usage(parent).free + staged_bytes(out)
    problems = []
    if free < size:
        problems.append(
            f"{out}: {size:,} bytes are needed and {free:,} are free; make room, or choose another --out"
        )
    if disk.f_files and not staged_bytes(out) and disk.f_favail < len(sizes) + 2 * len(outputs) + 3:
        problems.append(f"{out}: its disk has room for {disk.f_favail:,} more files; choose another --out")
    return problems


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
    remedy = "set HF_HOME to a folder on another disk"
    problems = []
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(
            f"{place}: cannot be written to, and shards on their way to the Hub lie there; check its "
            f"permissions, or {remedy}"
        )
    if (free := shutil.disk_usage(place).free) < size:
        problems.append(
            f"{place}: {size:,} bytes are needed for shards on their way to the Hub and {free:,} are free; "
            f"make room, or {remedy}"
        )
    if problems:
        raise OutputError(own_lines(*problems), file=place)


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    while not os.path.exists(folder):  # noqa: PTH110 - False, not an error, where a name is too long
        folder = folder.parent
    return folder


def _folds_case(folder: Path) -> bool:
    """Whether names there that differ in case alone are one name, as the folder's own is."""
    swapped = folder.with_name(folder.name.swapcase()) if folder.name else folder
    return swapped != folder and swapped.exists() and swapped.samefile(folder)


def _bytes(name: str) -> int:
    return len(os.fsencode(name))


def _shown(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files, forced to disk.

    Raises:
        OutputError: the disk did not take one.
    """
    for name, content in files.items():
        with writing(folder / name, "make room, or choose another --out"):
            (folder / name).parent.mkdir(exist_ok=True)
            _write(folder / name, content, "xb")


def has_bytes(path: Path, content: bytes) -> bool:
    """Whether a small file is there and holds ``content``."""
    try:
        return path.stat().st_size == len(content) and read_named(path) == content
    except OSError:
        return False


def fill_in(path: Path, content: bytes) -> None:
    """Put another content of the same size into a file, which takes no more room.

    Raises:
        OutputError: the disk did not take it.
    """
    with writing(path, "make room, or choose another --out"):
        _write(path, content, "r+b")


def _write(path: Path, content: bytes, mode: str) -> None:
    with path.open(mode) as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
