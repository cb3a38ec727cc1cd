"""The right source for a checkpoint: the first of ``SOURCES`` that has one for it."""

from __future__ import annotations

from collections.abc import Callable

from hubextrap.tensors.cache import cached_source
from hubextrap.tensors.interfaces import Source
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import RemoteSource
from hubextrap.trajectory.checkpoint import Checkpoint

Opener = Callable[[Checkpoint, bool], Source | None]
"""A checkpoint's source, or None where the checkpoint is not of its kind; the flag is that of ``--cache``."""

SOURCES: tuple[Opener, ...] = (
    lambda one, cache: LocalSource(one.path, one.name) if one.repo is None else None,
    lambda one, cache: cached_source(one) if cache else None,
    lambda one, cache: (
        RemoteSource(one.repo, one.commit, one.path, one.name) if one.repo and one.commit else None
    ),
)


def open_source(checkpoint: Checkpoint, *, cache: bool = False) -> Source:
    """A source for the checkpoint's files: local folder, or ranges from the Hub.

    Args:
        cache: download a Hub checkpoint into the Hub cache first and read it from there; otherwise nothing
            of it touches the disk.

    Raises:
        HubExtrapError: the folder or repo cannot be read, or with ``cache`` not be downloaded.
    """
    for opener in SOURCES:
        if (source := opener(checkpoint, cache)) is not None:
            return source
    raise ValueError(f"{checkpoint.name}: not pinned to a commit")
