"""The right source for a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.tensors.cache import cached_source
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import RemoteSource

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Checkpoint


def open_source(checkpoint: Checkpoint, *, cache: bool = False) -> Source:
    """A source for the checkpoint's files: local folder, or ranges from the Hub.

    Args:
        cache: download a Hub checkpoint into the Hub cache first and read it from there; otherwise nothing
            of it touches the disk.

    Raises:
        HubExtrapError: the folder or repo cannot be read, or with ``cache`` not be downloaded.
    """
    if checkpoint.repo is None:
        return LocalSource(checkpoint.path, checkpoint.name)
    if checkpoint.commit is None:
        raise ValueError(f"{checkpoint.name}: not pinned to a commit")
    if cache:
        return cached_source(checkpoint)
    return RemoteSource(checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name)
