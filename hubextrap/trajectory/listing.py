"""What lies in a checkpoint's folder, by names and bytes; wherever the checkpoint is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.trajectory.hub_files import list_files
from hubextrap.trajectory.local_layout import files_in
from hubextrap.trajectory.sameness import digest_of
from hubextrap.trajectory.weights import Weights, weights_of

if TYPE_CHECKING:
    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.trajectory.pins import Pins


def looked_into(
    checkpoint: Checkpoint, what: str
) -> tuple[Checkpoint, Weights | None, list[tuple[str, int]]]:
    """The checkpoint as its folder's listing has it, its weights, and names and bytes of all files there."""
    named, digest = files_of_checkpoint(checkpoint, what)
    checkpoint = replace(checkpoint, digest=digest)
    weights = weights_of(named)
    return weights.of(checkpoint) if weights else checkpoint, weights, named


def files_of_checkpoint(
    checkpoint: Checkpoint, what: str, pins: Pins | None = None
) -> tuple[list[tuple[str, int]], str | None]:
    """Names and bytes of the files in a checkpoint's folder, and what stands for its weights on the Hub."""
    if checkpoint.repo is None or checkpoint.commit is None:
        return files_in(Path(checkpoint.path)), checkpoint.digest
    known = None if pins is None else pins.listed.get((checkpoint.repo, checkpoint.commit, checkpoint.path))
    files = known or list_files(checkpoint.repo, checkpoint.commit, checkpoint.path, what) or []
    return [(file.path.rpartition("/")[2], file.size) for file in files], digest_of(files)
