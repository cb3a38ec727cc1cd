"""What lies in a repo at a pinned commit, or in a bucket: listings only, no file is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.containment import leads_out, shown
from hubextrap.errors import HubExtrapError, TrajectoryError
from hubextrap.hub_access import hub_api, hub_errors
from hubextrap.trajectory.bucket_files import bucket_tree, changed_since, is_bucket, pin_of_files
from hubextrap.trajectory.hub_file import HubFile
from hubextrap.trajectory.weights import inner_folders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def list_files(
    repo: str, commit: str, folder: str, what: str, *, recursive: bool = False, dates: bool = False
) -> list[HubFile] | None:
    """The files in a folder of a repo at a commit, paths from the repo's root; None without such a folder."""
    entries = list_entries(repo, commit, folder, what, recursive=recursive, dates=dates)
    return None if entries is None else [entry for entry in entries if not entry.is_folder]


def list_checkpoint(repo: str, commit: str, folder: str, what: str, *, dates: bool = False) -> list[HubFile]:
    """The files of a checkpoint in a folder of a repo at a commit, those in its inner folders with them;
    paths from the folder."""
    entries = list_entries(repo, commit, folder, what, dates=dates) or []
    files = [entry for entry in entries if not entry.is_folder]
    start = f"{folder}/" if folder else ""
    wanted = [start + inner for inner in inner_folders({file.path.removeprefix(start) for file in files})]
    for entry in entries:
        if entry.is_folder and entry.path in wanted:
            files += list_files(repo, commit, entry.path, what, dates=dates) or []
    found = [replace(file, path=file.path.removeprefix(start)) for file in files]
    check_pin(repo, commit, found, what, TrajectoryError)
    return found


def check_pin(
    repo: str, commit: str, files: Iterable[HubFile], what: str, kind: type[HubExtrapError]
) -> None:
    """Compare a checkpoint's files in a bucket with its pin; those of a repo lie at its commit.

    Args:
        commit: "" compares nothing.
        files: those in its folder and in its inner folders, paths from its folder.

    Raises:
        HubExtrapError: one was written to, added or removed; of ``kind``.
    """
    if not is_bucket(repo) or not commit or pin_of_files(files := list(files)) == commit:
        return
    said = f"{changed_since(commit, files)} since this command pinned it"
    message = f"{what}: {said}; wait until nothing writes to it, then run the same command again"
    raise kind(message, file=what, repo=repo)


def list_entries(
    repo: str,
    commit: str,
    folder: str,
    what: str,
    kind: type[HubExtrapError] = TrajectoryError,
    *,
    recursive: bool = False,
    dates: bool = False,
) -> list[HubFile] | None:
    """The same with the folders in it; ``what`` and ``kind`` as `hub_errors` takes them.

    A bucket's folder is listed as it is now, whatever the commit: see `check_pin`.
    """
    from huggingface_hub.errors import EntryNotFoundError

    with hub_errors(what, kind):
        try:
            found = list(list_tree(repo, commit, folder, recursive=recursive, dates=dates))
        except EntryNotFoundError:
            return None
    if wrong := next((entry.path for entry in found if leads_out(entry.path)), None):
        message = (
            f"{what}: the Hub lists a path that leads out of the repo, {shown(wrong)}; do not use this repo"
        )
        raise kind(message, file=wrong, repo=repo)
    return None if is_bucket(repo) and not found else found


def list_tree(
    repo: str, commit: str, folder: str = "", *, recursive: bool = False, dates: bool = False
) -> Iterator[HubFile]:
    """The same as the Hub says it: errors are the client's, and paths may lead anywhere."""
    from huggingface_hub.hf_api import RepoFile

    if is_bucket(repo):
        yield from bucket_tree(repo, folder, recursive=recursive)
        return
    api = hub_api()
    for entry in api.list_repo_tree(repo, folder or None, revision=commit, recursive=recursive, expand=dates):
        if isinstance(entry, RepoFile):
            digest = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
            date = entry.last_commit.date if entry.last_commit else None
            yield HubFile(entry.path, entry.size, date, digest)
        else:
            yield HubFile(entry.path, 0, is_folder=True)
