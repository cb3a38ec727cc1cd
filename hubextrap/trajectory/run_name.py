"""What a run is called: the folder that holds its steps, or its repo; never a step's own folder.

/data/verl/grpo-7b/global_step_400/actor/huggingface    grpo-7b, global_step_400/actor/huggingface in it
me/runs:exp1/checkpoint-400                             exp1
me/run@step_400, me/run-step-400                        run
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Protocol

from hubextrap.step_names import INNER_FOLDERS, read_step, without_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SAYS_NOTHING = {*INNER_FOLDERS, "checkpoints", "checkpoint", "ckpts", "ckpt", "weights", "outputs", "output"}
"""Folders that every run may have; what is above them says which run it is."""
_HOMES = ("home", "Users")
_DIGITS = re.compile(r"\d+")
Units = dict[tuple[str | None, tuple[str, ...]], int]
"""The place of a step's own folder among the folders of a path, by repo and path."""


class Placed(Protocol):
    """A checkpoint, or what a provenance says of one."""

    @property
    def repo(self) -> str | None: ...
    @property
    def revision(self) -> str: ...
    @property
    def path(self) -> str: ...


def run_name(checkpoints: Sequence[Placed]) -> str | None:
    """The name of the run that checkpoints, in step order, are of; None where no folder and no repo says it.

    That of the last one counts, as the first may be another model; where it says none, as in a user's home,
    that of one before.
    """
    units = _units(checkpoints)
    names = (_name(one, checkpoints, units) for one in reversed(checkpoints))
    return next((name for name in names if name), None)


def paths_in_run(checkpoints: Sequence[Placed]) -> list[str]:
    """Where local checkpoints lie in their run's folder; of those on the Hub, their folders in the repo."""
    units = _units(checkpoints)
    return [_path(one, units) for one in checkpoints]


def path_in_run(checkpoint: Placed) -> str:
    """The same of one whose neighbours are not known."""
    return _path(checkpoint, {})


def _path(one: Placed, units: Units) -> str:
    if one.repo is not None:
        return one.path
    parts = _parts(one.path)
    return "/".join(parts[len(_above(one, parts, units)) :])


def _name(one: Placed, checkpoints: Sequence[Placed], units: Units) -> str:
    parts = _parts(one.path)
    above = _above(one, parts, units)
    if one.repo is None:
        if _unit(one, parts, units) is None:  # a model by a name of its own
            return parts[len(above)] if parts else ""
        return "" if _is_a_home(above) else above[-1]
    if above:
        return above[-1]
    owner, _, name = one.repo.rpartition("/")
    said = read_step(name)
    if said is not None:
        counted = [found.step for found in map(read_step, (one.revision, *parts)) if found is not None]
        beside = any(other is not one and other.repo == one.repo for other in checkpoints)
        return name if beside or any(step != said.step for step in counted) else without_step(name) or owner
    if any(other.repo != one.repo and _alike(other.repo, one.repo) for other in checkpoints if other.repo):
        return name.rstrip("0123456789").rstrip("-_.")
    return name


def _parts(path: str) -> tuple[str, ...]:
    parts = PurePath(path).parts
    return parts[1:] if path.startswith("/") else parts


def _above(one: Placed, parts: tuple[str, ...], units: Units) -> tuple[str, ...]:
    """The folders down to the run's own; none where it has no folder of its own."""
    unit = _unit(one, parts, units)
    if unit is None:
        if one.repo is not None:
            return ()
        while len(parts) > 1 and parts[-1] in INNER_FOLDERS:
            parts = parts[:-1]
        return parts[:-1]
    above = holding = parts[:unit]
    while above and (above[-1].lower() in _SAYS_NOTHING or not without_step(above[-1])):
        above = above[:-1]
    return holding if one.repo is None and _is_a_home(above) else above


def _unit(one: Placed, parts: tuple[str, ...], units: Units) -> int | None:
    """Which of the folders is the step's: where alike ones differ, else by what they are called."""
    if (found := units.get((one.repo, parts))) is not None:
        return found
    return next((index for index in reversed(range(len(parts))) if read_step(parts[index]) is not None), None)


def _units(checkpoints: Iterable[Placed]) -> Units:
    """By repo and folders, the last place at which another path that is alike differs from this one first.

    Among paths in order, that is how much one shares with its neighbours: no pair is looked at but these.
    """
    alike: dict[tuple[str | None, str], set[tuple[str, ...]]] = {}
    for one in checkpoints:
        parts = _parts(one.path)
        alike.setdefault((one.repo, _DIGITS.sub("#", "/".join(parts))), set()).add(parts)
    units: Units = {}
    for (repo, _), group in alike.items():
        for before, after in pairwise(sorted(group)):
            shared = next(at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
            for parts in (before, after):
                units[repo, parts] = max(shared, units.get((repo, parts), 0))
    return units


def _alike(one: str, other: str) -> bool:
    return _DIGITS.sub("#", one) == _DIGITS.sub("#", other)


def _is_a_home(folders: tuple[str, ...]) -> bool:
    """Whether they lead to no folder, or to a user's own, whose name is nobody else's business."""
    if not folders or folders == ("root",) or (len(folders) == 2 and folders[0] in _HOMES):
        return True
    return Path("/", *folders) == Path.home()
