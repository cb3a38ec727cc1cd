"""What stands for the bytes of a checkpoint's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.digests import sha256_of_json
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.local import LocalSource
from hubextrap.trajectory.checkpoint import ADAPTER, BASE
from hubextrap.trajectory.weights import weights_of

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint

_SAYS_HOW = {ADAPTER: "adapter_config.json", BASE: "config.json"}
"""By the kind of a checkpoint, what says beside the weights' own files what the weights are."""


def commit_fingerprint(checkpoint: Checkpoint) -> str | None:
    """What stands for all bytes of a checkpoint on the Hub; None for a local one."""
    return None if checkpoint.repo is None else f"{checkpoint.repo}@{checkpoint.commit}:{checkpoint.path}"


def files_fingerprint(checkpoint: Checkpoint, source: Source) -> str:
    """What stands for a local checkpoint's weights, as long as nobody writes to its files.

    Those of an adapter and of its base are bytes together with how they are scaled, or lie.
    """
    source, _ = beneath(source, ())
    assert isinstance(source, LocalSource)
    weights = weights_of((file, info.size) for file, info in source.files().items())
    # without the device: a file system may have another number tomorrow
    files = {
        file: source.stamp(file)[:-1]
        for file, info in sorted(source.files().items())
        if info.problem is None
        and (
            file.endswith(".safetensors")
            or file == _SAYS_HOW.get(checkpoint.kind)
            or (weights is not None and file in weights.files)
        )
    }
    return sha256_of_json([checkpoint.path, files])
