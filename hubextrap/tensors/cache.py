"""A checkpoint on the Hub, downloaded into huggingface_hub's cache and read from there."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.containment import shown
from hubextrap.digests import hash_like
from hubextrap.errors import CorruptFile, SourceError, UnsupportedCheckpoint
from hubextrap.hub_access import first_line, hub_errors
from hubextrap.tensors.configuration import check_loaded
from hubextrap.tensors.hashing import check_data, check_file
from hubextrap.tensors.interfaces import SMALL_FILE, FileInfo
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import list_folder
from hubextrap.tensors.weights import PICKLE_SUFFIXES, check_files
from hubextrap.trajectory.bucket_files import is_bucket
from hubextrap.trajectory.checkpoint import ADAPTER
from hubextrap.trajectory.weights import (
    ADAPTER_FILE,
    DCP_SUFFIX,
    READABLE,
    WHOLE_MODEL,
    kind_of,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hubextrap.trajectory.checkpoint import Checkpoint


class CachedSource(LocalSource):
    """A checkpoint's files in the Hub cache, with the hashes that the Hub lists: the client compares none."""

    def __init__(self, folder: Path, name: str, listed: Mapping[str, FileInfo]) -> None:
        super().__init__(folder, name)
        there = self._files
        self._files = {
            file: FileInfo(
                there[file].size, info.digest, there[file].problem, str((self.folder / file).resolve())
            )
            for file, info in listed.items()
            if file in there
        }

    def read_file(self, file: str, limit: int = SMALL_FILE) -> bytes:
        data = super().read_file(file, limit)
        check_data(self, file, data)
        return data


def cached_source(checkpoint: Checkpoint) -> CachedSource:
    """Download the files that a source of the checkpoint lists, unless they are cached; pickles are left out
    that are no weights which are read.

    Raises:
        UnsupportedCheckpoint: the folder holds no safetensors weights; found before anything is downloaded.
        SourceError: a file could not be downloaded.
    """
    listed = _listed(checkpoint)
    if checkpoint.kind != ADAPTER:  # who reads adapters says what is wrong with one
        check_files(listed, checkpoint.name, READABLE)
    found = weights_of((name, info.size) for name, info in listed.items())
    taken = found.files if found is not None and found.kind in READABLE else ()
    return _complete(
        checkpoint,
        {
            name: info
            for name, info in listed.items()
            if name in taken or not name.endswith((*PICKLE_SUFFIXES, DCP_SUFFIX))
        },
    )


def check_download(checkpoint: Checkpoint, *, weights: bool) -> None:
    """Bring what transformers will load into the Hub cache, and compare it with the hashes the Hub lists.

    Without a network (HF_HUB_OFFLINE) the hashes are those that the files had when they were downloaded.

    Args:
        weights: whether the weights will be loaded, too.

    Raises:
        UnsupportedCheckpoint: one leads out of the checkpoint, see `check_loaded`.
        CorruptFile: a file holds other bytes.
        SourceError: a file could not be downloaded.
    """
    if checkpoint.repo is not None and checkpoint.commit is not None:
        downloaded_source(checkpoint, weights=weights).close()


def downloaded_source(checkpoint: Checkpoint, *, weights: bool) -> CachedSource:
    """A source of what `check_download` brings into the Hub cache.

    Raises:
        HubExtrapError: as there.
        UnsupportedCheckpoint: it lies in a bucket.
    """
    from huggingface_hub import constants

    if is_bucket(checkpoint.repo):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: lies in a bucket, from which neither transformers nor vLLM loads; copy the "
            f"folder to this disk (hf buckets sync {checkpoint.name} FOLDER) and name that",
            step=checkpoint.step,
        )
    if constants.HF_HUB_OFFLINE:
        folder = _download(checkpoint, None)
        source = CachedSource(folder, checkpoint.name, _as_downloaded(folder))
    else:
        listed = _listed(checkpoint)
        wanted = {
            name: info for name, info in listed.items() if info.size <= SMALL_FILE and not _is_weights(name)
        }
        source = _complete(checkpoint, wanted | (_loaded_weights(checkpoint, listed) if weights else {}))
    try:
        for file in source.files():
            key = (str(source.folder / file), source.stamp(file))
            if key not in _checked:
                check_file(source, file)
                _checked.add(key)
        check_loaded(source, None, adapter=checkpoint.kind == ADAPTER)
    except BaseException:
        source.close()
        raise
    return source


def _loaded_weights(checkpoint: Checkpoint, listed: Mapping[str, FileInfo]) -> dict[str, FileInfo]:
    """Of the files those that transformers, or peft, takes the weights from; no pickles."""
    if checkpoint.kind == ADAPTER:
        return {name: info for name, info in listed.items() if name == ADAPTER_FILE}
    found = weights_of((name, info.size) for name, info in listed.items())
    if found is None or found.kind != WHOLE_MODEL:
        return {}
    return {name: listed[name] for name in found.files}


def check_cached(path: Path, what: str) -> bytes:
    """The content of a small file in the Hub cache, compared with the hash under which the cache keeps it.

    Raises:
        CorruptFile: it holds other bytes. OSError: it cannot be read.
    """
    data, listed = path.read_bytes(), _kept_as(path)
    if listed is not None and (found := hash_like(listed, data)) != listed:
        raise CorruptFile(
            f"{what}: its bytes have the hash {found}, the Hub lists {listed}; remove {path.resolve()} from "
            "the Hub cache, then run the same command again"
        )
    return data


def _kept_as(path: Path) -> str | None:
    """The hash under which the cache keeps a file of a snapshot: the first link's. One behind it may lead to
    what repos share, which goes by another hash."""
    name = path.readlink().name if path.is_symlink() else path.name
    return name if _HASH.fullmatch(name) else None


_checked: set[tuple[str, tuple[int, ...]]] = set()
"""What `check_download` has compared in this process, by path and what the file looked like."""

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def _listed(checkpoint: Checkpoint) -> dict[str, FileInfo]:
    """What the Hub lists of a checkpoint's folder; an error where a name has no place on a disk."""
    if checkpoint.repo is None or checkpoint.commit is None:
        raise ValueError(f"{checkpoint.name}: not a checkpoint on the Hub")
    names = list_folder(checkpoint.repo, checkpoint.commit, checkpoint.path, checkpoint.name)
    if wrong := next((name for name, info in names.items() if info.problem is not None), None):
        raise SourceError(
            f"{checkpoint.name}/{shown(wrong)}: {names[wrong].problem}, or read it uncached (no --cache)",
            file=wrong,
            step=checkpoint.step,
            repo=checkpoint.repo,
        )
    return names


def _complete(checkpoint: Checkpoint, listed: Mapping[str, FileInfo]) -> CachedSource:
    """A source of these files, downloaded; an error unless it holds them as the Hub lists them."""
    source = CachedSource(_download(checkpoint, listed), checkpoint.name, listed)
    there = source.files()
    for name, info in listed.items():
        if name not in there or there[name].size != info.size:
            source.close()
            raise SourceError(
                f"{source.name}/{name}: is not in the cache as the Hub lists it: the copy is damaged, or "
                "the disk takes a similar name for the same; remove the copy",
                file=name,
            )
    return source


def _is_weights(file: str) -> bool:
    return kind_of(file) is not None or file.endswith((".safetensors", *PICKLE_SUFFIXES))


def _as_downloaded(folder: Path) -> dict[str, FileInfo]:
    """The files of a snapshot with the hashes under which the cache keeps them."""
    return {
        path.name: FileInfo(path.stat().st_size, name)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_file() and (name := _kept_as(path)) is not None
    }


def _download(checkpoint: Checkpoint, files: Collection[str] | None) -> Path:
    """The checkpoint's folder in the Hub cache, with these files in it; None: what is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    assert checkpoint.repo is not None
    prefix = f"{checkpoint.path}/" if checkpoint.path else ""
    with hub_errors(checkpoint.name):
        try:
            folder = snapshot_download(
                checkpoint.repo,
                revision=checkpoint.commit,
                # patterns match across "/", so the exact names are asked for, what is special escaped
                allow_patterns=None if files is None else [glob.escape(prefix + name) for name in files],
                library_name="hubextrap",
                library_version=__version__,
                tqdm_class=Silent,
            )
        except (LocalEntryNotFoundError, OSError, RuntimeError) as error:  # the last is hf_xet's
            # its own words are of the cache alone: what the Hub or the storage answered came first
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
            said = first_line(cause or error)
            raise SourceError(
                f"{checkpoint.name}: cannot be downloaded: {said}; check the network and the free space of "
                "the cache, then run the same command again",
                step=checkpoint.step,
                repo=checkpoint.repo,
            ) from error
    return Path(folder, checkpoint.path)
