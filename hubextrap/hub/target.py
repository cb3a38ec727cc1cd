"""Where a push goes: a repo and a branch, checked before any byte moves."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from hubextrap._version import __version__
from hubextrap.errors import PushError, wrong_argument
from hubextrap.hub.provenance import without_private_parts
from hubextrap.hub.push_errors import push_errors
from hubextrap.hub.side_files import is_utf8
from hubextrap.hub_access import hub_api
from hubextrap.patience import retried
from hubextrap.trajectory.hub_file import HubFile
from hubextrap.trajectory.hub_files import list_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


_BRANCH = re.compile(
    r"(?!.*(?:\.\.|//|@\{|\.lock(?:/|$)|/\.|\.$|/$))[^\s/.~^:?*\[\\\x00-\x1f\x7f-][^\s~^:?*\[\\\x00-\x1f\x7f]*"
)
_LONGEST_PART, _LONGEST_NAME, _LONGEST_TITLE = 250, 1000, 1000
"""Bytes of a part of a branch's name, which git keeps in a file of that name and `.lock`; of the whole name,
which is a path; and of a title, which the Hub shows as one line."""
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class PushTarget:
    """What the user asks for."""

    repo: str
    revision: str = "main"
    private: bool = False
    """Make the repo private when it is created; an existing public repo is refused."""
    create_pr: bool = False
    """Open a pull request against the revision, and leave the revision itself as it is."""
    message: str | None = None
    """The commit's title; one that says what was predicted when None."""

    def __post_init__(self) -> None:
        """
        Raises:
            PushError: git or the Hub would not have the repo, the branch or the title.
        """
        for name in ("repo", "revision"):
            if not isinstance(getattr(self, name), str):
                raise wrong_argument(name, "a text", getattr(self, name))
        _check_repo(self.repo, self.repo)
        instead = f"write {self.repo}@BRANCH, e.g. @step_400"
        if _problem_of_branch(self.revision):
            raise refusal(self, f"{self.revision!r} is not the name of a branch; {instead}")
        if _SHA.fullmatch(self.revision):
            raise refusal(self, f"a push goes to a branch, not to a commit; {instead}")
        if self.message is not None and (problem := _problem_of_title(self.message)):
            raise refusal(self, f"the commit's title {problem}; write another one")

    @classmethod
    def parse(
        cls, reference: str, *, private: bool = False, create_pr: bool = False, message: str | None = None
    ) -> PushTarget:
        """Read ``OWNER/NAME`` or ``OWNER/NAME@BRANCH``.

        Raises:
            PushError: it is neither, or what is in it could not be pushed to.
        """
        repo, at, revision = reference.removeprefix("hf://").partition("@")
        _check_repo(repo, shown := without_private_parts(reference))
        if "/" not in repo:
            raise PushError(f"{shown}: a repo to push to needs its owner; write OWNER/{repo}")
        revision = revision if at else "main"
        return cls(repo, revision, private=private, create_pr=create_pr, message=message)

    @property
    def name(self) -> str:
        return f"{self.repo}@{self.revision}"


def push_targets(given: PushTarget | str | Sequence[PushTarget | str] | None) -> list[PushTarget]:
    """One target or several, each as it is or as ``owner/name@branch``.

    Raises:
        WrongArgument: it is no such thing.
        PushError: as `PushTarget`.
    """
    if given is None:
        return []
    several = [given] if isinstance(given, (PushTarget, str)) else given
    if not isinstance(several, (list, tuple)):
        raise wrong_argument("push", "owner/name@branch, a PushTarget, or a list of them", given)
    found = []
    for one in several:
        if not isinstance(one, (PushTarget, str)):
            raise wrong_argument("push", "owner/name@branch, a PushTarget, or a list of them", one)
        found.append(PushTarget.parse(one) if isinstance(one, str) else one)
    return found


def one_target(given: PushTarget | str | None, name: str = "push") -> PushTarget | None:
    """The same of one, or of none."""
    if given is None or isinstance(given, PushTarget):
        return given
    if not isinstance(given, str):
        raise wrong_argument(name, "owner/name@branch, or a PushTarget", given)
    return PushTarget.parse(given)


@dataclass(frozen=True, slots=True)
class RemoteState:
    """The target as it is on the Hub at one moment."""

    exists: bool
    head: str | None
    """Commit of the target branch, or of the branch that it will start from; None without any commit."""
    has_branch: bool
    files: Mapping[str, HubFile]
    """Files of ``head`` by path."""
    pull_requests: frozenset[tuple[str, str]] = frozenset()
    """Ref and commit of each, where the target is a pull request."""
    branches: frozenset[str] = frozenset()
    """The names of all that are there."""


def refusal(target: PushTarget, why: str) -> PushError:
    """The error for what cannot be pushed to ``target``."""
    return PushError(f"{target.name}: {why}", repo=target.repo)


def _check_repo(repo: str, shown: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PushError(f"{shown}: not a repo to push to; write OWNER/NAME or OWNER/NAME@BRANCH") from error


def _problem_of_branch(name: str) -> bool:
    """Whether git or the Hub would not have a branch of that name."""
    return (
        not _BRANCH.fullmatch(name)
        or not is_utf8(name)
        or name.startswith("refs/")
        or name in ("@", "HEAD")
        or len(name.encode()) > _LONGEST_NAME
        or any(len(part.encode()) > _LONGEST_PART for part in name.split("/"))
    )


def _problem_of_title(title: str) -> str | None:
    if not is_utf8(title):
        return "is not UTF-8 text"
    if not title.strip() or "\0" in title:
        return "is blank" if not title.strip() else "has a null byte in it"
    if len(title.encode()) > _LONGEST_TITLE:
        return f"has {len(title.encode()):,} bytes, more than {_LONGEST_TITLE:,}"
    return None


def check_target(target: PushTarget) -> RemoteState:
    """Look whether the push can work, and where it would land. Changes nothing on the Hub.

    Raises:
        PushError: no token, a token without write rights, a revision that is not a branch or cannot be one
            beside those that are there, a public repo where a private one was asked for, or a Hub that cannot
            be reached.
    """
    with push_errors(target.name):
        owners = _check_token(target)
        found = read_remote(target)
        if found.exists:
            retried(lambda: _check_rights(target, found))
    owner = target.repo.partition("/")[0]
    if not found.exists and owners and owner not in owners:
        raise refusal(
            target,
            f"there is no such repo, and this token cannot make one for {owner}: have {owner} make the repo "
            "and give you write rights, or push under your own name",
        )
    return found


def create_repo(target: PushTarget) -> RemoteState:
    """Create the target's repo, empty; one that is there already stays as it is.

    Raises:
        PushError: the Hub refuses.
    """
    with push_errors(target.name):
        api = hub_api()
        retried(lambda: api.create_repo(target.repo, private=target.private or None, exist_ok=True))
        return read_remote(target)


def read_remote(target: PushTarget) -> RemoteState:
    """The target as it is now; client errors come through as they are."""
    from huggingface_hub.errors import RepositoryNotFoundError

    api = hub_api()
    try:
        refs = retried(lambda: api.list_repo_refs(target.repo, include_pull_requests=target.create_pr))
    except RepositoryNotFoundError:
        _check_pull_request(target, ())
        _check_beside(target, ("main",))  # which comes with the repo
        return RemoteState(exists=False, head=None, has_branch=False, files={})
    if target.private and not retried(lambda: api.model_info(target.repo)).private:
        raise refusal(
            target,
            "the repo is there and public, but a private one was asked for; make it private in its settings, "
            "or push to another repo",
        )
    branches = {branch.name: branch.target_commit for branch in refs.branches}
    if target.revision not in branches and target.revision in {tag.name for tag in refs.tags}:
        raise refusal(target, f"{target.revision} is a tag, and a tag cannot be pushed to; choose a branch")
    _check_pull_request(target, branches)
    _check_beside(target, branches or ("main",))
    head = branches.get(target.revision, branches.get("main"))
    return RemoteState(
        exists=True,
        head=head,
        has_branch=target.revision in branches,
        files=remote_files(target.repo, head) if head else {},
        pull_requests=frozenset((ref.ref, ref.target_commit) for ref in refs.pull_requests or ()),
        branches=frozenset(branches),
    )


def clashing(name: str, branches: Iterable[str]) -> str | None:
    """The first of ``branches`` that git cannot hold beside ``name``, as one is a folder for the other."""
    return next(
        (one for one in sorted(branches) if one.startswith(f"{name}/") or name.startswith(f"{one}/")), None
    )


def _check_beside(target: PushTarget, branches: Collection[str]) -> None:
    if target.revision in branches or (other := clashing(target.revision, branches)) is None:
        return
    flat = target.revision.replace("/", "-")
    instead = flat if flat != target.revision and clashing(flat, branches) is None else f"{flat}-1"
    raise refusal(
        target,
        f"the repo has a branch {other}, and git holds no branch {target.revision} beside it; choose another "
        f"name, e.g. {target.repo}@{instead}, or delete {other} on the Hub",
    )


def _check_rights(target: PushTarget, state: RemoteState) -> None:
    """Have the Hub say whether it would take a commit to a repo that is there; client errors come through.

    A pull request is asked for as its upload begins, which a repo without discussions refuses. The client's
    own ``auth_check`` asks about reading alone before version 2.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    if os.environ.get("HF_OIDC_RESOURCE"):  # a token of one repo, which the push exchanges
        return
    place = f"{hub_api().endpoint}/api/models/{target.repo}"
    headers = build_hf_headers(library_name="hubextrap", library_version=__version__)
    if not target.create_pr:
        response = get_session().get(f"{place}/auth-check/write", headers=headers)
        if response.status_code not in (404, 405):  # of a Hub that cannot be asked: the repo itself was found
            hf_raise_for_status(response)
    elif state.head is not None:
        asked = {"files": [{"path": "README.md", "sample": "", "size": 0}]}
        url = f"{place}/preupload/{quote(target.revision, safe='')}"
        hf_raise_for_status(get_session().post(url, params={"create_pr": "1"}, json=asked, headers=headers))


def _check_pull_request(target: PushTarget, branches: Collection[str]) -> None:
    """A repo without commits gets its main branch when it is created; any other has to be there."""
    if target.create_pr and target.revision not in (branches or ("main",)):
        raise refusal(
            target,
            f"no such branch, and a pull request needs one to go into; leave out {target.revision}, which "
            "makes it main, or push without a pull request",
        )


def remote_files(repo: str, commit: str) -> dict[str, HubFile]:
    """All files of a commit by path; client errors come through as they are."""
    return {entry.path: entry for entry in list_tree(repo, commit, recursive=True) if not entry.is_folder}


def _check_token(target: PushTarget) -> list[str]:
    """In whose names the token may make repos; empty where that is not known."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise refusal(
            target, "no token; log in with `hf auth login`, or set HF_TOKEN to one with write rights"
        )
    if os.environ.get("HF_OIDC_RESOURCE"):  # a token of one repo and of no user
        return []
    account = retried(hub_api().whoami)
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise refusal(
            target,
            "the token only has read rights; make one with write rights in the Hub's settings, and set "
            "HF_TOKEN to it",
        )
    match account:
        case {"name": str(name), "orgs": [*organisations]}:
            named = [one["name"] for one in organisations if isinstance(one, dict) and "name" in one]
            return [name, *map(str, named)]
    return []
