"""What stands for the bytes of a checkpoint's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.digests import sha256_of_json
from hubextrap.tensors.local import LocalSource

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint


def commit_fingerprint(checkpoint: Checkpoint) -> str | None:
    """What stands for all bytes of a checkpoint on the Hub; None for a local one."""
    return None if checkpoint.repo is None else f"{checkpoint.repo}@{checkpoint.commit}:{checkpoint.path}"


def files_fingerprint(checkpoint: Checkpoint, source: Source) -> str:
    """What stands for the bytes of a local checkpoint's weights, as long as nobody writes to its files."""
    assert isinstance(source, LocalSource)
    # without the device: a file system may have another number tomorrow
    files = {
        file: source.stamp(file)[:-1]
        for file, info in sorted(source.files().items())
        if file.endswith(".safetensors") and info.problem is None
    }
    return sha256_of_json([checkpoint.path, files])
