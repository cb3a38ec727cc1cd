"""The right source for a checkpoint: the first of ``SOURCES`` that has one for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hubextrap.errors import SourceError, UnsupportedCheckpoint
from hubextrap.tensors.bucket import BucketSource
from hubextrap.tensors.cache import cached_source
from hubextrap.tensors.interfaces import Source
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.raw import as_safetensors
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
    """A source for the checkpoint's files: local folder, or ranges from the Hub; weights as safetensors.

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
            return as_safetensors(source, checkpoint.weights)
    raise ValueError(f"{checkpoint.name}: not pinned to a commit")


class OpenSources:
    """The sources of a run's checkpoints, each opened when it is first asked for.

    Args:
        cache: as for `open_source`; adapters, which are small and read more than once, are always cached.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], *, cache: bool) -> None:
        self._checkpoints, self._cache = checkpoints, cache
        self._opened: dict[int, Source] = {}
        self._closed = False

    def of(self, k: int) -> Source:
        """The source of the checkpoint of this number.

        Raises:
            HubExtrapError: as `open_source`, or they are closed.
        """
        if self._closed:
            raise SourceError("this run is closed, and reads no more; open another one with Run.of")
        if k not in self._opened:
            checkpoint = self._checkpoints[k]
            self._opened[k] = open_source(checkpoint, cache=self._cache or checkpoint.kind == ADAPTER)
        return self._opened[k]

    def check_unchanged(self) -> None:
        """Look at those in buckets once more: nothing there keeps what they were pinned with.

        Raises:
            HubExtrapError: as `BucketSource.check_unchanged`.
        """
        for source in self._opened.values():
            if isinstance(source, BucketSource):
                source.check_unchanged()

    def close(self) -> None:
        """Close them all, for good."""
        self._closed = True
        for source in self._opened.values():
            source.close()
