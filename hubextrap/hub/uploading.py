"""The bytes of large files on their way to the Hub's store, ahead of the commit that makes them visible."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.hub.push_errors import is_lost_upload
from hubextrap.hub_access import hub_api
from hubextrap.patience import Patience, is_passing, retried

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from huggingface_hub import CommitOperationAdd

    from hubextrap.hub.outgoing import OutgoingFile
    from hubextrap.hub.target import PushTarget, RemoteState
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import FinishedShard

_UPLOADS_AT_ONCE = 3
_OBJECTS_ASKED_FOR = 256
_LARGE = 2**20  # bytes; smaller files go in one request together
_TWICE = Patience(attempts=2)  # the client itself tries every request several times


def upload(target: PushTarget, state: RemoteState, files: Sequence[OutgoingFile], progress: Progress) -> None:
    """Send the bytes of large files ahead of the commit; what the Hub has already is not sent again."""
    large = [file for file in files if file.size >= _LARGE]
    small = [file for file in files if file.size < _LARGE]
    batches = [[file] for file in large] + ([small] if small else [])
    total = sum(file.size for file in files)
    with (
        progress.stage(f"upload to {target.name}", total) as stage,
        ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool,
    ):

        def send(batch: list[OutgoingFile]) -> None:
            preupload(target, state, [file.operation for file in batch])
            stage.advance(sum(file.size for file in batch))

        list(pool.map(send, batches))


def preupload(
    target: PushTarget, state: RemoteState, operations: list[CommitOperationAdd], *, free_memory: bool = False
) -> None:
    """Ask how each file is to be stored, and upload those that are stored as large ones."""
    api = hub_api()
    retried(
        lambda: api.preupload_lfs_files(
            target.repo,
            additions=operations,
            revision=target.revision if state.has_branch else "main",
            create_pr=target.create_pr,
            gitignore_content="",  # a .gitignore in the repo must not make files vanish from the commit
            free_memory=free_memory,
        ),
        _TWICE,
        worth=lambda error: is_passing(error) or is_lost_upload(error),
    )
    for operation in operations:
        operation._remote_oid = None  # else the client leaves out what the branch has at the moment


def there_already(
    target: PushTarget, state: RemoteState, shards: Sequence[FinishedShard]
) -> list[FinishedShard]:
    """The shards whose bytes the Hub's LFS store has for this repo, committed or not.

    Over Xet the Hub does not say, so none is: sending them again costs little there, as the chunks are known.
    """
    from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if uploads_over_xet():
        return []
    found = set()
    for start in range(0, len(shards), _OBJECTS_ASKED_FOR):
        some = [
            UploadInfo(shard.size, sample=b"", sha256=bytes.fromhex(shard.sha256))
            for shard in shards[start : start + _OBJECTS_ASKED_FOR]
        ]
        answers, _, _ = post_lfs_batch_info(
            some,
            token=None,
            repo_type="model",
            repo_id=target.repo,
            revision=target.revision if state.has_branch else "main",
            endpoint=hub_api().endpoint,
            headers=build_hf_headers(library_name="hubextrap", library_version=__version__),
        )
        found |= {answer["oid"] for answer in answers if not answer.get("actions")}
    return [shard for shard in shards if shard.sha256 in found]


def uploads_over_xet() -> bool:
    """Whether the client sends large files over Xet: by its own rule, which it has no public name for."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


@contextlib.contextmanager
def without_client_bars() -> Iterator[None]:
    """Keep huggingface_hub's progress bars off the terminal while ours is on it."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
