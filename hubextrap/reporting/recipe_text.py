"""How recipes and commands name a scanned run, on a page that may be passed on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.recipe.yaml_nodes import dump_yaml
from hubextrap.step_names import read_step
from hubextrap.trajectory.bucket_files import is_bucket
from hubextrap.trajectory.checkpoint import place_name

if TYPE_CHECKING:
    from hubextrap.clocks import ClockChoice
    from hubextrap.scans import Scan
    from hubextrap.scans.parts import ScannedCheckpoint


def recipe_beginning(scan: Scan, last: int, clock: ClockChoice | None) -> str:
    """A recipe's ``trajectory``, YAML: the checkpoints up to step ``last``.

    Args:
        clock: what it is to say of one; None for nothing.
    """
    seen = [read for read in scan.checkpoints if read.step <= last]
    run = _run(scan.checkpoints)
    said: dict[str, Any] = {}
    steps = ""
    if run is None:
        said["checkpoints"] = [{"model": _shown(read), "step": read.step} for read in seen]
    else:
        name, base = run
        said["repo"] = name
        if base is not None:
            said["base"] = _shown(base)
        steps = f"  steps: {{only: [{', '.join(str(read.step) for read in seen if read is not base)}]}}\n"
    if clock is not None:
        said["clock"] = dict(clock) if isinstance(clock, Mapping) else clock
    return dump_yaml({"trajectory": said}) + steps


def command_name(scan: Scan) -> str:
    """The run as arguments for a shell; ``RUN`` where no one name says it."""
    run = _run(scan.checkpoints)
    if run is None:
        return "RUN"
    name, base = run
    return shlex.quote(name) + ("" if base is None else f" --base {shlex.quote(_shown(base))}")


def _run(checkpoints: tuple[ScannedCheckpoint, ...]) -> tuple[str, ScannedCheckpoint | None] | None:
    """What holds all checkpoints, and the first one where it lies elsewhere; None where the steps are not
    those that their names say, so that nothing finds them there without being told how."""
    for base, others in ((None, checkpoints), (checkpoints[0], checkpoints[1:])):
        repos = {read.repo for read in others}
        if len(repos) > 1 or len(others) < 2 or not all(map(_says_its_step, others)):
            continue
        (repo,) = repos
        if repo is None:
            folder = os.path.commonpath([read.path for read in others])
            if len(Path(folder).parts) > 2:  # else they have nothing in common
                return _local(folder), base
            continue
        revisions = {read.revision for read in others}
        inside = os.path.commonpath([f"/{read.path}" for read in others]).strip("/")
        if is_bucket(repo):
            return place_name(repo, "", inside), base
        at = f"@{revisions.pop()}" if len(revisions) == 1 and revisions != {"main"} else ""
        return f"{repo}{at}" + (f":{inside}" if inside else ""), base
    return None


def _says_its_step(read: ScannedCheckpoint) -> bool:
    said = map(read_step, (read.revision, *Path(read.path).parts))
    return any(name is not None and name.step == read.step for name in said)


def _shown(read: ScannedCheckpoint) -> str:
    return _local(read.path) if read.repo is None else read.name


def _local(folder: str) -> str:
    """A folder without what only this machine has: relative to here, or else its own name."""
    path = Path(folder)
    here = Path.cwd()
    inside = path.relative_to(here) if path.is_relative_to(here) and path != here else Path(path.name)
    return f"./{inside}"
