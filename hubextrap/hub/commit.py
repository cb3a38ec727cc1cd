"""One commit that holds the whole model, safe to retry, never partial.

The order: compare with what is there, upload the bytes, create the branch, make the commit. Until that last
step the branch shows what it showed before. The commit names its parent, so of two attempts that both reach
the Hub only one can succeed; after any doubtful answer we look at what is there before we send it again.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.errors import PushError
from hubextrap.foreign_text import own_lines
from hubextrap.hub.earlier import left_by_earlier
from hubextrap.hub.outgoing import Changes
from hubextrap.hub.push_errors import is_conflict, push_errors
from hubextrap.hub.side_files import belongs_to_model, is_utf8
from hubextrap.hub.target import check_target, create_repo, read_remote, refusal, remote_files
from hubextrap.hub.uploading import upload, without_client_bars
from hubextrap.hub_access import hub_api
from hubextrap.patience import Attempts, is_passing, retried, wait_asked_by
from hubextrap.progress import SilentProgress
from hubextrap.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from huggingface_hub import CommitInfo, HfApi

    from hubextrap.hub.outgoing import OutgoingFile
    from hubextrap.hub.target import PushTarget, RemoteState
    from hubextrap.progress import Progress
    from hubextrap.trajectory.hub_file import HubFile

MAX_FILES, MAX_REGULAR = 25_000, 10**9
"""Of one commit, as huggingface_hub documents it: files, and bytes of those that are not LFS files."""
_LARGE = 10 * 2**20
"""Bytes from which the Hub has a file be an LFS file, whatever its name."""


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

    Weights, configuration, tokenizer and chat templates of an older model at the revision's root go in the
    same commit, as does whatever an earlier prediction brought; any other file there stays. Where nothing
    would change, nothing is committed.

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
        earlier = left_by_earlier(target, state, {file.path for file in files}) if whole_model else None
        changes = Changes.between(files, state.files, earlier)
        for file in changes.added:
            if file.path == "README.md":
                with file.operation.as_file() as content:
                    check_card(target, content.read())
        upload(target, state, changes.added, progress)
        return _Committer(target, files, target.message or message, earlier, progress).run(state)


def landed(
    target: PushTarget, files: Sequence[OutgoingFile], before: RemoteState, now: RemoteState
) -> PushResult | None:
    """The commit of a whole model, if one was made between two looks at the target: by who was killed then.

    Raises:
        PushError: the Hub does not say.
    """
    with push_errors(target.name):
        earlier: dict[str, HubFile] = {}  # what it left is gone, if the commit was made
        return _Committer(target, files, "", earlier, SilentProgress())._landed(before, now, ())


@dataclass(frozen=True, slots=True)
class _Committer:
    """The attempts at one commit."""

    target: PushTarget
    files: Sequence[OutgoingFile]
    message: str
    earlier: Mapping[str, HubFile] | None
    """See `Changes.between`."""
    progress: Progress
    api: HfApi = field(default_factory=hub_api)

    def run(self, start: RemoteState) -> PushResult:
        state = start
        branched_at: str | None = None
        deleted: tuple[str, ...] = ()
        attempts = Attempts()
        try:
            while True:
                changes = self._changes(state.files)
                deleted = changes.deleted or deleted
                try:
                    if not state.has_branch and state.head:
                        branched_at = state.head
                        self.api.create_branch(
                            self.target.repo, branch=self.target.revision, revision=state.head, exist_ok=True
                        )
                    if not changes:
                        assert state.head  # files are there, so a commit is
                        return PushResult(state.head, self._url(state.head), unchanged=True)
                    return self._checked(self._send(state, changes), changes)
                except Exception as error:
                    if not (is_passing(error) or is_conflict(error)):
                        raise
                    wait = attempts.wait(wait_asked_by(error))
                    time.sleep(wait or 0.0)
                    now = read_remote(self.target)
                    if landed := self._landed(start, now, deleted):
                        return landed
                    refuse_overwriting(self.target, state, now, self.files)
                    if wait is None:
                        raise
                    state = now
        except BaseException:
            if branched_at:
                self._take_back_branch(branched_at)
            raise

    def _changes(self, there: Mapping[str, HubFile]) -> Changes:
        return Changes.between(self.files, there, self.earlier)

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
            self.progress.say(redact(str(warning.message)))
        return info

    def _checked(self, info: CommitInfo, changes: Changes) -> PushResult:
        """The result of a commit that holds what it should; a last look, so that no mistake goes unseen."""
        left = self._changes(remote_files(self.target.repo, info.oid))
        if left:
            wrong = ", ".join([*(file.path for file in left.added), *left.deleted])
            raise refusal(
                self.target, f"commit {info.oid} does not hold what was pushed ({wrong}); push again"
            )
        return PushResult(info.oid, info.commit_url, pull_request_url=info.pr_url, deleted=changes.deleted)

    def _landed(self, start: RemoteState, now: RemoteState, deleted: tuple[str, ...]) -> PushResult | None:
        """The commit, if it was made although the answer to the request was an error."""
        if self.target.create_pr:
            for ref, commit in sorted(now.pull_requests - start.pull_requests):
                if not self._changes(remote_files(self.target.repo, commit)):
                    url = f"{self.api.endpoint}/{self.target.repo}/discussions/{ref.rpartition('/')[2]}"
                    return PushResult(commit, self._url(commit), pull_request_url=url, deleted=deleted)
            return None
        if not now.has_branch or now.head in (None, start.head):
            return None
        # somebody else's may have come on top by now: what was pushed is the first that holds it all
        for commit in reversed(self._since(start, now)):
            if not self._changes(remote_files(self.target.repo, commit)):
                return PushResult(commit, self._url(commit), deleted=deleted)
        return None

    def _since(self, start: RemoteState, now: RemoteState) -> list[str]:
        """The commits of the branch that were not there at the start, the last one first."""
        history = self.api.list_repo_commits(self.target.repo, revision=now.head)
        shas = [commit.commit_id for commit in history]
        return shas[: shas.index(start.head)] if start.head in shas else shas

    def _take_back_branch(self, made_at: str) -> None:
        """Delete the branch that was made for this push at a commit, if it is still there."""
        with contextlib.suppress(Exception):  # the error that brought us here matters more
            now = read_remote(self.target)
            if now.has_branch and now.head == made_at:
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
    both = sorted(path for path in changed if path in ours or belongs_to_model(path))
    if both:
        raise refusal(
            target,
            f"somebody else changed {', '.join(both[:5])} in the meantime (commit {now.head}); look at that "
            "commit, then push again",
        )


def check_files(target: PushTarget, sizes: Mapping[str, int]) -> None:
    """Refuse what no repo or commit can hold: names, and how much goes into one commit.

    Args:
        sizes: of all files, by path.

    Raises:
        PushError: all that is wrong.
    """
    problems = [f"{file!r}: {why}" for file in sizes if (why := _refusal_of_name(file))]
    regular = sum(size for size in sizes.values() if size < _LARGE)
    if len(sizes) > MAX_FILES:
        problems.append(f"{len(sizes):,} files are more than the {MAX_FILES:,} that a commit takes")
    if regular > MAX_REGULAR:
        problems.append(f"{regular:,} bytes of small files are more than a commit takes ({MAX_REGULAR:,})")
    if problems:
        raise PushError(own_lines(*(f"{target.name}: {problem}" for problem in problems)))


def _refusal_of_name(file: str) -> str | None:
    if not is_utf8(file):
        return "its name is not UTF-8 text; rename it"
    if any(character < " " or character in "\x7f\\" for character in file):
        return "its name has a control character or a backslash in it; rename it"
    if any(len(part.encode()) > 255 for part in file.split("/")):
        return "its name has more than 255 bytes; rename it"
    return None


def check_card(target: PushTarget, card: bytes) -> None:
    """Have the Hub check a card's metadata before the weights are sent.

    Raises:
        PushError: it refuses them, or cannot be reached.
    """
    text = card.decode(errors="replace")
    if not text.lstrip().startswith("---"):
        return  # a card without metadata is allowed
    with push_errors(target.name):
        refusal = retried(partial(_refusal_of_card, text))
    if refusal is not None:
        raise PushError(
            f"README.md: the metadata at its top are not valid ({refusal}); correct them, then push again"
        )


def _refusal_of_card(text: str) -> str | None:
    """What the configured Hub has against a card; None where it takes it.

    huggingface_hub's ``ModelCard.validate`` would send the card to the public Hub, whatever HF_ENDPOINT says,
    before version 2.2.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    response = get_session().post(
        f"{hub_api().endpoint}/api/validate-yaml",
        json={"repoType": "model", "content": text},
        headers=build_hf_headers(library_name="hubextrap", library_version=__version__),
    )
    if response.status_code == 400:
        return " ".join(response.text.split())
    hf_raise_for_status(response)
    return None
