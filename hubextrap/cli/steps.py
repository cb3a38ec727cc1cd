"""`hubextrap steps`: the checkpoints of a run, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from hubextrap.cli.options import Said, Selection, grouped
from hubextrap.cli.terminal import console, tell, tell_json

if TYPE_CHECKING:
    from hubextrap.trajectory import Checkpoint, Trajectory


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
    """List the checkpoints of a run: step, revision, commit, size, dtype and date."""
    from hubextrap.tensors import describe
    from hubextrap.trajectory import find_trajectory

    progress = said.progress
    trajectory = find_trajectory(reference, selection.options(), progress=progress)
    if not fast:
        trajectory = describe(trajectory, progress)
    if said.as_json:
        tell_json([_as_json(one, trajectory) for one in trajectory.checkpoints])
    else:
        _print_table(reference, trajectory)


def _as_json(checkpoint: Checkpoint, trajectory: Trajectory) -> dict[str, Any]:
    alike = next((steps for steps in trajectory.same_weights if checkpoint.step in steps), ())
    return {
        "step": checkpoint.step,
        "name": checkpoint.name,
        "repo": checkpoint.repo,
        "revision": checkpoint.revision or None,
        "commit": checkpoint.commit,
        "path": checkpoint.path,
        "size": checkpoint.size,
        "dtype": checkpoint.dtype,
        "date": checkpoint.date.isoformat() if checkpoint.date else None,
        "note": checkpoint.note,
        "same_weights_as": [step for step in alike if step != checkpoint.step],
    }


def _print_table(reference: str, trajectory: Trajectory) -> None:
    from hubextrap.cli.progress import format_bytes
    from hubextrap.narrow import NarrowTable

    one_repo = len({checkpoint.repo for checkpoint in trajectory.checkpoints}) == 1
    rows = [
        (
            str(checkpoint.step),
            _place(checkpoint, one_repo),
            (checkpoint.commit or "")[:8],
            "" if checkpoint.size is None else format_bytes(checkpoint.size),
            checkpoint.dtype or "",
            f"{checkpoint.date:%Y-%m-%d %H:%M}" if checkpoint.date else "",
        )
        for checkpoint in trajectory.checkpoints
    ]
    tell(f"{reference}: {len(trajectory.checkpoints)} checkpoints of {trajectory.series}")
    header = ("step", "checkpoint", "commit", "size", "dtype", "date")
    console(100_000).print(NarrowTable(header, rows, "rllrll"))  # off a terminal no name is cut
    for checkpoint in trajectory.checkpoints:
        if checkpoint.note:
            tell(f"note: step {checkpoint.step} {checkpoint.note}")


def _place(checkpoint: Checkpoint, one_repo: bool) -> str:
    """What tells the checkpoint from the others of its table."""
    if not one_repo or checkpoint.repo is None:
        return checkpoint.name
    if checkpoint.path and checkpoint.revision == "main":
        return checkpoint.path
    return checkpoint.revision + (f":{checkpoint.path}" if checkpoint.path else "")
