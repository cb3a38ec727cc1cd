"""What lies in a repo at a pinned commit: listings only, no file is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.containment import leads_out, shown
from hubextrap.errors import TrajectoryError
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.patience import retried

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repo."""

    path: str
    size: int
    date: datetime | None = None
    """Of the commit that last changed it, where asked for."""
    digest: str | None = None
    """sha256 of an LFS file, git blob id of a regular one."""


def commit_of(repo: str, revision: str | None, what: str) -> str:
    """The commit SHA of a revision (main where None); ``what`` names it in errors."""
    with hub_errors(what, TrajectoryError):
        info = retried(lambda: hub_api().model_info(repo, revision=revision or "main", expand=["sha"]))
    if info.sha is None:
        raise TrajectoryError(f"{what}: the Hub names no commit for it", repo=repo)
    return info.sha


def list_files(
    repo: str, commit: str, folder: str, what: str, *, recursive: bool = False, dates: bool = False
) -> list[HubFile] | None:
    """The files in a folder of a repo at a commit, paths from the repo's root; None without such a folder."""
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(what, TrajectoryError):
        try:
            tree = list(
                hub_api().list_repo_tree(
                    repo, folder or None, revision=commit, recursive=recursive, expand=dates
                )
            )
        except EntryNotFoundError:
            return None
    if wrong := next((entry.path for entry in tree if leads_out(entry.path)), None):
        raise TrajectoryError(
            f"{what}: the Hub lists a path that leads out of it, {shown(wrong)}; do not trust it",
            file=wrong,
            repo=repo,
        )
    return [
        HubFile(
            entry.path,
            entry.size,
            entry.last_commit.date if entry.last_commit else None,
            entry.lfs.sha256 if entry.lfs is not None else entry.blob_id,
        )
        for entry in tree
        if isinstance(entry, RepoFile)
    ]
