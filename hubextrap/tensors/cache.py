"""A checkpoint on the Hub, downloaded into huggingface_hub's cache and read from there."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.containment import shown
from hubextrap.errors import SourceError
from hubextrap.hub_access import first_line, hub_errors
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.remote import list_folder
from hubextrap.tensors.weights import PICKLE_SUFFIXES, check_files

if TYPE_CHECKING:
    from hubextrap.trajectory.checkpoint import Checkpoint


def cached_source(checkpoint: Checkpoint) -> LocalSource:
    """Download the files that a source of the checkpoint lists, pickles left out, unless they are cached.

    Raises:
        UnsupportedCheckpoint: the folder holds no safetensors weights; found before anything is downloaded.
        SourceError: a file could not be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    repo, commit, path = checkpoint.repo, checkpoint.commit, checkpoint.path
    if repo is None or commit is None:
        raise ValueError(f"{checkpoint.name}: not a checkpoint on the Hub")
    names = list_folder(repo, commit, path, checkpoint.name)
    if wrong := next((name for name, info in names.items() if info.problem is not None), None):
        raise SourceError(
            f"{checkpoint.name}/{shown(wrong)}: {names[wrong].problem}, or leave it there and drop --cache"
        )
    check_files(names, checkpoint.name)
    prefix = f"{path}/" if path else ""
    wanted = [name for name in names if not name.endswith(PICKLE_SUFFIXES)]
    with hub_errors(checkpoint.name):
        try:
            folder = snapshot_download(
                repo,
                revision=commit,
                # Patterns match across "/": exact names are asked for, what is special in patterns escaped.
                allow_patterns=[glob.escape(prefix + name) for name in wanted],
                library_name="hubextrap",
                library_version=__version__,
                tqdm_class=Silent,
            )
        except (LocalEntryNotFoundError, OSError) as error:
            raise SourceError(
                f"{checkpoint.name}: cannot be downloaded: {first_line(error)}; check the network and the "
                "free space of the cache, then run the same command again"
            ) from error
    source = LocalSource(Path(folder) / path, checkpoint.name)
    there = source.files()
    for name in wanted:
        if name not in there or there[name].size != names[name].size:
            source.close()
            raise SourceError(
                f"{checkpoint.name}/{name}: is not in the cache as the Hub lists it: the copy is damaged, or "
                "the disk does not tell it from a name nearly the same; remove it there, or drop --cache"
            )
    return source
