"""One commit that holds the whole model, safe to retry, never partial.

The order: compare with what is there, upload the bytes, create the branch, make the commit. Until that last
step the branch shows what it showed before. The commit names its parent, so of two attempts that both reach
the Hub only one can succeed; after any doubtful answer we look at what is there before we send it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import yaml

from hubextrap._version import __version__
from hubextrap.errors import PushError
from hubextrap.hub.push_errors import ATTEMPTS, is_conflict, is_passing, pause, push_errors, retried
from hubextrap.hub.side_files import is_side_file, is_weight_file
from hubextrap.hub.target import check_target, create_repo, read_remote, remote_files
from hubextrap.hub_access import hub_api, without_secrets
from hubextrap.progress import SilentProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from huggingface_hub import CommitInfo, CommitOperationAdd

    from hubextrap.hub.target import PushTarget, RemoteFile, RemoteState
    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import FinishedShard

_UPLOADS_AT_ONCE = 3
_OBJECTS_ASKED_FOR = 256
SCORE_FILES = ("hubextrap-eval.", ".eval_results/hubextrap-")
"""How the paths of an older model's published scores begin."""
_LARGE = 2**20  # bytes; smaller files go in one request together


class OutgoingFile:
    """A file that is to be in the commit, and where its bytes are."""

    def __init__(self, path: str, content: Path | bytes, sha256: str | None = None) -> None:
        """
        Args:
            path: in the repo.
            content: a local file, or the bytes.
            sha256: of the content, where it is known; computed here when None.
        """
        from huggingface_hub import CommitOperationAdd

        self.path = path
        self.operation = CommitOperationAdd(path, content)
        self.size: int = self.operation.upload_info.size
        self.sha256 = sha256 or self.operation.upload_info.sha256.hex()
        self.operation.upload_info.sha256 = bytes.fromhex(self.sha256)

    @classmethod
    def uploaded(cls, shard: FinishedShard) -> OutgoingFile:
        """A large file whose bytes the Hub has already; they need not be here."""
        from huggingface_hub.lfs import UploadInfo

        file = cls(shard.file, b"", shard.sha256)
        file.size = shard.size
        # As `preupload_lfs_files(free_memory=True)` leaves an operation; the client has no public way to it.
        file.operation.upload_info = UploadInfo(shard.size, sample=b"", sha256=bytes.fromhex(shard.sha256))
        file.operation._upload_mode = "lfs"
        file.operation._is_uploaded = True
        return file

    def same_as(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub's file has these bytes."""
        if remote is None or remote.size != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 else remote.blob_id == self._blob_id()

    def _blob_id(self) -> str:
        """git's name for the content. (Never that of an uploaded file, whose bytes are gone from here.)"""
        with self.operation.as_file() as file:
            content = file.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did."""

    commit: str
    url: str
    pull_request_url: str | None = None
    unchanged: bool = False
    """The Hub had it all already, and no commit was made."""
    deleted: tuple[str, ...] = ()
    """Files of an older model that the commit took away."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit has to do."""

    added: tuple[OutgoingFile, ...]
    deleted: tuple[str, ...]

    @classmethod
    def between(
        cls, files: Sequence[OutgoingFile], there: Mapping[str, RemoteFile], *, whole_model: bool = True
    ) -> Changes:
        ours = {file.path for file in files}
        return cls(
            added=tuple(file for file in files if not file.same_as(there.get(file.path))),
            deleted=tuple(
                path
                for path in sorted(there)
                if whole_model
                and path not in ours
                and (is_weight_file(path) or is_side_file(path) or path.startswith(SCORE_FILES))
            ),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.deleted)


def commit_files(
    target: PushTarget,
    files: Sequence[OutgoingFile],
    *,
    message: str,
    state: RemoteState | None = None,
    whole_model: bool = True,
    progress: Progress | None = None,
) -> PushResult:
    """Make ``files`` the model that ``target`` holds, in one commit.

    Weights, configuration and tokenizer of an older model at the revision's root go in the same commit; any
    other file there stays. Where nothing would change, nothing is committed.

    Args:
        message: the commit's title, unless the target has its own.
        state: the target as ``check_target`` found it, where that was done before.
        whole_model: False adds ``files`` to the model that is there and takes nothing away.

    Raises:
        PushError: the Hub did not take it, or somebody else changed the same files meanwhile.
    """
    progress = progress or SilentProgress()
    state = state or check_target(target)
    if not state.exists:
        state = create_repo(target)
    with push_errors(target.name), without_client_bars():
        changes = Changes.between(files, state.files, whole_model=whole_model)
        _check_card(changes.added)
        upload(target, state, changes.added, progress)
        return _Committer(target, files, target.message or message, whole_model, progress).run(state)


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

        for _ in pool.map(send, batches):
            pass


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
        attempts=2,  # the client itself tries every request several times
    )


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


class _Committer:
    """The attempts at one commit."""

    def __init__(
        self,
        target: PushTarget,
        files: Sequence[OutgoingFile],
        message: str,
        whole_model: bool,
        progress: Progress,
    ) -> None:
        self.target = target
        self.files = files
        self.message = message
        self.whole_model = whole_model
        self.progress = progress
        self.api = hub_api()

    def run(self, start: RemoteState) -> PushResult:
        state, made_branch = start, False
        deleted: tuple[str, ...] = ()
        try:
            for attempt in range(ATTEMPTS):
                changes = self._changes(state.files)
                deleted = changes.deleted or deleted
                try:
                    if not state.has_branch and state.head:
                        made_branch = True
                        self.api.create_branch(
                            self.target.repo, branch=self.target.revision, revision=state.head, exist_ok=True
                        )
                    if not changes:
                        assert state.head  # files are there, so a commit is
                        return PushResult(state.head, self._url(state.head), unchanged=True)
                    return self._checked(self._send(state, changes), changes)
                except Exception as error:
                    if attempt == ATTEMPTS - 1 or not (is_passing(error) or is_conflict(error)):
                        raise
                    pause(attempt, error)
                now = read_remote(self.target)
                if landed := self._landed(start, now, deleted):
                    return landed
                refuse_overwriting(self.target, state, now, self.files)
                state = now
            raise AssertionError("the last attempt returns or raises")
        except BaseException:
            if made_branch:
                self._take_back_branch(start)
            raise

    def _changes(self, there: Mapping[str, RemoteFile]) -> Changes:
        return Changes.between(self.files, there, whole_model=self.whole_model)

    def _send(self, state: RemoteState, changes: Changes) -> CommitInfo:
        from huggingface_hub import CommitOperationDelete

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            info = self.api.create_commit(
                self.target.repo,
                operations=[
                    *(file.operation for file in changes.added),
                    *(CommitOperationDelete(path) for path in changes.deleted),
                ],
                commit_message=self.message,
                revision=self.target.revision,
                create_pr=self.target.create_pr,
                parent_commit=state.head,
            )
        for warning in caught:
            self.progress.say(without_secrets(str(warning.message)))
        return info

    def _checked(self, info: CommitInfo, changes: Changes) -> PushResult:
        """The result of a commit that holds what it should; a last look, so that no mistake goes unseen."""
        left = self._changes(remote_files(self.api, self.target.repo, info.oid))
        if left:
            wrong = ", ".join([*(file.path for file in left.added), *left.deleted])
            raise PushError(
                f"{self.target.name}: commit {info.oid} does not hold what was pushed ({wrong}); push again"
            )
        return PushResult(info.oid, info.commit_url, pull_request_url=info.pr_url, deleted=changes.deleted)

    def _landed(self, start: RemoteState, now: RemoteState, deleted: tuple[str, ...]) -> PushResult | None:
        """The commit, if it was made although the answer to the request was an error."""
        if self.target.create_pr:
            for ref, commit in sorted(now.pull_requests - start.pull_requests):
                if not self._changes(remote_files(self.api, self.target.repo, commit)):
                    url = f"{self.api.endpoint}/{self.target.repo}/discussions/{ref.rpartition('/')[2]}"
                    return PushResult(commit, self._url(commit), pull_request_url=url, deleted=deleted)
            return None
        if now.has_branch and now.head and not self._changes(now.files):
            return PushResult(now.head, self._url(now.head), deleted=deleted)
        return None

    def _take_back_branch(self, start: RemoteState) -> None:
        """Delete the branch that was made for this push, if nothing was committed to it."""
        with contextlib.suppress(Exception):  # the error that brought us here matters more
            now = read_remote(self.target)
            if now.has_branch and now.head == start.head:
                self.api.delete_branch(self.target.repo, branch=self.target.revision)

    def _url(self, commit: str) -> str:
        return f"{self.api.endpoint}/{self.target.repo}/commit/{commit}"


def refuse_overwriting(
    target: PushTarget, before: RemoteState, now: RemoteState, files: Sequence[OutgoingFile]
) -> None:
    """Stand back if, between two looks at the target, somebody else changed what our commit would change.

    Raises:
        PushError: they did.
    """
    paths = before.files.keys() | now.files.keys()
    changed = {path for path in paths if before.files.get(path) != now.files.get(path)}
    ours = {file.path for file in files}
    both = sorted(path for path in changed if path in ours or is_weight_file(path) or is_side_file(path))
    if both:
        raise PushError(
            f"{target.name}: somebody else changed {', '.join(both[:5])} there meanwhile "
            f"(commit {now.head}); look at it, then push again"
        )


def _check_card(files: Sequence[OutgoingFile]) -> None:
    """Have the Hub check the card's metadata before the weights are sent.

    Raises:
        PushError: it refuses them.
    """
    from huggingface_hub import ModelCard

    for file in files:
        if file.path != "README.md":
            continue
        with file.operation.as_file() as content:
            text = content.read().decode(errors="replace")
        if not text.lstrip().startswith("---"):
            continue  # a card without metadata is allowed
        try:
            card = ModelCard(text)
            retried(card.validate)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            raise PushError(
                f"README.md: the metadata at its top are not valid ({said}); correct them, then push again"
            ) from error


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
