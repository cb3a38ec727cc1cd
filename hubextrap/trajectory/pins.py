"""What one command has pinned: a branch or tag is asked for once, whatever becomes of it afterwards."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hubextrap.errors import TrajectoryError
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.patience import retried

if TYPE_CHECKING:
    from hubextrap.trajectory.hub_file import HubFile

Refs = dict[str, list[tuple[str, str]]]
"""Kind (branches, tags) to (name, commit) of each."""


class Pins:
    """The commits of branches and tags as they were when the command first asked. Thread-safe.

    Made once per command and handed to everything that looks something up on the Hub.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, str], threading.Lock] = {}
        self._commits: dict[tuple[str, str], str] = {}
        self._refs: dict[str, Refs] = {}
        self.listed: dict[tuple[str, str, str], list[HubFile]] = {}
        """The files of folders that were listed on the way, by repo, commit and folder."""

    def commit_of(self, repo: str, revision: str | None, what: str) -> str:
        """The commit SHA of a revision (main where None); ``what`` names it in errors.

        Raises:
            ReferenceNotFound, AccessDenied: it is not there, or not open to this token.
        """
        revision = revision or "main"
        with self._turn(repo, revision):
            if known := self._commits.get((repo, revision)):
                return known
            with hub_errors(what, TrajectoryError):
                info = retried(lambda: hub_api().model_info(repo, revision=revision, expand=["sha"]))
            if info.sha is None:
                raise TrajectoryError(f"{what}: the Hub names no commit for it", repo=repo)
            return self.keep(repo, revision, info.sha)

    def refs(self, repo: str, what: str) -> Refs:
        """All branches and tags of a repo.

        Raises:
            ReferenceNotFound, AccessDenied: there is no such repo, or it is not open to this token.
        """
        with self._turn(repo, ""):
            if repo not in self._refs:
                with hub_errors(what, TrajectoryError):
                    found = retried(lambda: hub_api().list_repo_refs(repo))
                self._refs[repo] = {
                    kind: [(ref.name, self.keep(repo, ref.name, ref.target_commit)) for ref in refs]
                    for kind, refs in (("branches", found.branches), ("tags", found.tags))
                }
            return self._refs[repo]

    def keep(self, repo: str, revision: str, commit: str) -> str:
        """Pin a revision to ``commit``, unless it is pinned; the commit that it is pinned to."""
        with self._lock:
            return self._commits.setdefault((repo, revision), commit)

    def _turn(self, repo: str, revision: str) -> threading.Lock:
        with self._lock:
            return self._asking.setdefault((repo, revision), threading.Lock())
