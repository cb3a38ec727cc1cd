"""`hubextrap steps`: the checkpoints of a run, as a table or as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from hubextrap.cli.options import Said, Selection, grouped
from hubextrap.cli.terminal import console, tell, tell_json

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Checkpoint, Pins, Trajectory


@grouped
def steps(
    reference: str = typer.Argument(
        ...,
        metavar="REF",
        help="A run: org/name, org/name@revision, org/name:folder, hf://org/name@revision/folder or a local "
        "folder.",
    ),
    *,
    selection: Selection,
    fast: bool = typer.Option(
        False, "--fast", help="Leave out dtype and date, which take two requests per checkpoint."
    ),
    said: Said,
) -> None:
    """List the checkpoints of a run: step, revision, commit, kind, size, dtype and date."""
    from hubextrap.tensors import describe
    from hubextrap.trajectory import Pins, find_trajectory

    progress = said.progress
    pins = Pins()
    trajectory = find_trajectory(reference, selection.options(), pins=pins, progress=progress)
    trajectory = _with_base(trajectory, pins, progress)
    if not fast:
        trajectory = describe(trajectory, progress)
    if said.as_json:
        tell_json([_as_json(one, trajectory) for one in _listed(trajectory)])
    else:
        _print_table(reference, trajectory)


def _with_base(trajectory: Trajectory, pins: Pins, progress: Progress) -> Trajectory:
    """The trajectory with the base that the user named found, where it can be had; warns where not."""
    from hubextrap.adapters.base import Bases
    from hubextrap.errors import HubExtrapError

    if not isinstance(trajectory.base_model, str):
        return trajectory
    try:
        base = Bases(trajectory.base_model, pins).common()
    except HubExtrapError as error:
        progress.warn(str(error))
        base = None
    return replace(trajectory, base_model=base)


def _listed(trajectory: Trajectory) -> list[Checkpoint]:
    """The checkpoints; for the untouched base, the base model where it is known."""
    base = trajectory.base_model
    known = None if isinstance(base, str) else base
    return [known if known and one.kind == known.kind else one for one in trajectory.checkpoints]


def _as_json(checkpoint: Checkpoint, trajectory: Trajectory) -> dict[str, Any]:
    alike = next((steps for steps in trajectory.same_weights if checkpoint.step in steps), ())
    return {
        "step": checkpoint.step,
        "name": checkpoint.name,
        "repo": checkpoint.repo,
        "revision": checkpoint.revision or None,
        "commit": checkpoint.commit,
        "path": checkpoint.path,
        "kind": checkpoint.kind,
        "weights": checkpoint.weights or None,
        "size": checkpoint.size,
        "dtype": checkpoint.dtype,
        "date": checkpoint.date.isoformat() if checkpoint.date else None,
        "note": checkpoint.note,
        "same_weights_as": [step for step in alike if step != checkpoint.step],
    }


def _print_table(reference: str, trajectory: Trajectory) -> None:
    from hubextrap.cli.progress import format_bytes
    from hubextrap.foreign_text import own_lines
    from hubextrap.narrow import NarrowTable
    from hubextrap.trajectory.checkpoint import MODEL, say_notes
    from hubextrap.trajectory.converting import how_to_convert
    from hubextrap.trajectory.weights import WHOLE_MODEL

    listed = _listed(trajectory)
    # otherwise all are whole models in safetensors
    with_kind = any(one.kind != MODEL or one.weights not in ("", WHOLE_MODEL) for one in listed)
    one_repo = len({one.repo for one in listed} - {None}) < 2
    rows = [
        (
            str(checkpoint.step),
            _place(checkpoint, one_repo),
            (checkpoint.commit or "")[:8],
            *([checkpoint.weights if checkpoint.kind == MODEL else checkpoint.kind] if with_kind else []),
            "" if checkpoint.size is None else format_bytes(checkpoint.size),
            checkpoint.dtype or "",
            f"{checkpoint.date:%Y-%m-%d %H:%M}" if checkpoint.date else "",
        )
        for checkpoint in listed
    ]
    tell(f"{reference}: {len(trajectory.checkpoints)} checkpoints of {trajectory.series}")
    header = ("step", "checkpoint", "commit", *(["kind"] if with_kind else []), "size", "dtype", "date")
    table = NarrowTable(header, rows, "rlllrll" if with_kind else "rllrll")
    console(100_000).print(table)  # off a terminal no name is cut
    for line in say_notes(listed):
        tell(f"note: {line}")
    if how := how_to_convert(listed):
        tell(own_lines(f"note: {how[0]}", *how[1:]))


def _place(checkpoint: Checkpoint, one_repo: bool) -> str:
    """What tells the checkpoint from the others of its table."""
    if not one_repo or checkpoint.repo is None:
        return checkpoint.name
    if checkpoint.path and checkpoint.revision in ("main", ""):
        return checkpoint.path
    return checkpoint.revision + (f":{checkpoint.path}" if checkpoint.path else "")
