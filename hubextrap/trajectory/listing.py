"""What lies in a checkpoint's folder, by names and bytes; wherever the checkpoint is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.trajectory.hub_files import list_checkpoint
from hubextrap.trajectory.local_files import files_in
from hubextrap.trajectory.sameness import digest_of
from hubextrap.trajectory.weights import Weights, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint
    from hubextrap.trajectory.pins import Pins

_NAMES_SHOWN = 8


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
        return files_in(checkpoint.path), checkpoint.digest
    known = None if pins is None else pins.listed.get((checkpoint.repo, checkpoint.commit, checkpoint.path))
    files = known or list_checkpoint(checkpoint.repo, checkpoint.commit, checkpoint.path, what)
    return [(file.path, file.size) for file in files], digest_of(files)


def shown_names(names: Sequence[str]) -> str:
    """Some names, the first of many."""
    if not names:
        return "nothing"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
