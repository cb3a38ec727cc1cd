"""The right source for a checkpoint: the first of ``SOURCES`` that has one for it."""

from __future__ import annotations

from collections.abc import Callable

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.tensors.bucket import BucketSource
from hubextrap.tensors.cache import cached_source
from hubextrap.tensors.interfaces import Source
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import RemoteSource
from hubextrap.trajectory.bucket_files import is_bucket
from hubextrap.trajectory.checkpoint import ADAPTER, Checkpoint, is_untouched_base

Opener = Callable[[Checkpoint, bool], Source | None]
"""A checkpoint's source, or None where the checkpoint is not of its kind; the flag is that of ``--cache``."""

SOURCES: tuple[Opener, ...] = (
    lambda one, cache: LocalSource(one.path, one.name) if one.repo is None else None,
    lambda one, cache: _in_bucket(one, cache),
    lambda one, cache: cached_source(one) if cache else None,
    lambda one, cache: (
        RemoteSource(one.repo, one.commit, one.path, one.name) if one.repo and one.commit else None
    ),
)


def _in_bucket(one: Checkpoint, cache: bool) -> Source | None:
    """Of a bucket nothing is cached: the Hub's client has no cache for it."""
    if one.repo is None or one.commit is None or not is_bucket(one.repo):
        return None
    if cache and one.kind != ADAPTER:
        raise UnsupportedCheckpoint(
            f"{one.name}: lies in a bucket, of which nothing is cached; leave out --cache", step=one.step
        )
    return BucketSource(one.repo, one.commit, one.path, one.name)


def open_source(checkpoint: Checkpoint, *, cache: bool = False) -> Source:
    """A source for the checkpoint's files: local folder, or ranges from the Hub.

    Args:
        cache: download a Hub checkpoint into the Hub cache first and read it from there; otherwise nothing
            of it touches the disk.

    Raises:
        HubExtrapError: the folder or repo cannot be read, or with ``cache`` not be downloaded.
        UnsupportedCheckpoint: it is the step 0 of adapters that no file holds.
    """
    if is_untouched_base(checkpoint):  # its path is none, which would be the working directory
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: step 0 of these adapters has no files; start at a later step (--min-step, "
            "or trajectory.steps.min in a recipe)"
        )
    for opener in SOURCES:
        if (source := opener(checkpoint, cache)) is not None:
            return source
    raise ValueError(f"{checkpoint.name}: not pinned to a commit")
