"""A checkpoint that a command uses more than once has to be the same each time."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from hubextrap.digests import sha256_hex, sha256_of_json
from hubextrap.errors import SourceError
from hubextrap.hub.side_files import is_side_file
from hubextrap.opening import commit_fingerprint, files_fingerprint
from hubextrap.tensors import open_source
from hubextrap.trajectory import UNKNOWN_STEP

if TYPE_CHECKING:
    from hubextrap.trajectory import Checkpoint


def pin_of(checkpoint: Checkpoint) -> str:
    """What stands for all of a checkpoint that its weights' sums and its scores depend on."""
    if (commit := commit_fingerprint(checkpoint)) is not None:
        return commit
    with closing(open_source(checkpoint)) as source:
        weights = files_fingerprint(checkpoint, source)
        beside = {file: source.read_file(file) for file in sorted(source.files()) if is_side_file(file)}
    digests = {file: sha256_hex(data) for file, data in beside.items()}
    return sha256_of_json([weights, digests])


def check_unchanged(checkpoint: Checkpoint, pin: str) -> None:
    """Refuse what is not as it was when ``pin`` was taken.

    Raises:
        SourceError: somebody has written to it.
    """
    if pin_of(checkpoint) != pin:
        raise changed(checkpoint)


def changed(checkpoint: Checkpoint) -> SourceError:
    """The error for a checkpoint that is not what it was."""
    return SourceError(
        f"{checkpoint.name}: changed while the command ran; wait until nothing writes to it, then run the "
        "same command again",
        file=checkpoint.path,
        step=None if checkpoint.step == UNKNOWN_STEP else checkpoint.step,
        repo=checkpoint.repo,
    )
