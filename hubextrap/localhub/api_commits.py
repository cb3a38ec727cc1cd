"""Writing: preupload and the commit, on a branch or as a pull request."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import Any

import pygit2

from hubextrap.localhub import discussions
from hubextrap.localhub.cards import check_card
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.lfs import Pointer, RejectedObject, is_lfs
from hubextrap.localhub.repository import Change, Conflict, HubRepo, Kind, NoSuchRevision, check_path
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, json_object, list_in

_UPDATED = "The branch was updated since you opened this page. Please refresh and try again."
_OPERATIONS_MAX = 25_000  # in one commit


def preupload(hub: HubContext, call: Call) -> Answer:
    """POST …/preupload/V: how each file is to be uploaded, and what is at its path now."""
    repo, _, _ = _target(hub, call)
    commit = repo.head(call.groups["revision"])
    modes = []
    wanted = call.json()
    files = list_in(wanted, "files", _OPERATIONS_MAX, dict)
    try:
        asked = [
            (str(file["path"]), int(file["size"]), base64.b64decode(str(file.get("sample", ""))))
            for file in files
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Refusal(400, f"a file has a path, a size and a sample: {error!r:.200}") from error
    paths = [path for path, _, _ in asked]
    for path in paths:
        check_path(path)
    ignored = _ignored(paths, str(wanted.get("gitIgnore") or _gitignore(repo, commit)))
    for path, size, sample in asked:
        there = repo.entry(commit, path)
        mode: dict[str, Any] = {"path": path, "shouldIgnore": path in ignored}
        lfs = is_lfs(path, size, sample, repo.tracked_by_lfs(commit, path))
        mode["uploadMode"] = "lfs" if lfs else "regular"
        if there and not there.folder:
            mode["oid"] = there.lfs.sha256 if there.lfs else there.oid
        modes.append(mode)
    return json_answer({"files": modes})


def commit(hub: HubContext, call: Call) -> Answer:
    """POST …/commit/V[?create_pr=1]: one commit out of lines of JSON."""
    _target(hub, call)  # before anything is read
    body = call.body.read()
    with hub.store.lock:
        repo, user, ref = _target(hub, call)
        header, changes = _parse(body, repo)
        _check_readme(changes, repo.settings.kind)
        _collect_objects(hub, repo, changes)
        summary = str(header.get("summary") or "Upload files")
        description = str(header.get("description") or "")
        message = f"{summary}\n\n{description}".strip()
        parent = repo.head(call.groups["revision"])
        expected = header.get("parentCommit")
        if expected and not str(parent.id).startswith(str(expected)):
            raise Refusal(412, _UPDATED)
        number = len(repo.settings.discussions) + 1
        tree = repo.tree_with(parent, changes)
        try:
            sha = repo.commit(ref or f"refs/pr/{number}", tree, parent, message, user)
        except Conflict as error:
            raise Refusal(412, _UPDATED) from error
        page = hub.page(call, repo.settings.kind, repo.settings.name)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}", "hookOutput": ""}
        if ref is None:
            discussions.opened(repo, user, summary, description, base=call.groups["revision"])
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    return json_answer(answer)


def _target(hub: HubContext, call: Call) -> tuple[HubRepo, str, str | None]:
    """The repo, the user and the ref to commit to: None where a pull request is to be opened."""
    revision = call.groups["revision"]
    repo = hub.repo(call)
    if call.flag("create_pr"):
        user = hub.reader(call)
        discussions.check_enabled(repo)
        if not (repo.ref_of(revision) or "").startswith("refs/heads/"):
            raise NoSuchRevision(revision)
        return repo, user, None
    ref = repo.ref_of(revision)
    if ref and ref.startswith("refs/pr/"):
        user = hub.reader(call)
        if discussions.find(repo, int(ref.rpartition("/")[2]))["author"] == user:
            return repo, user, ref
    user = hub.writer(call, repo.settings.name, repo)
    if ref is None:
        raise NoSuchRevision(revision)
    if ref.startswith("refs/tags/"):
        raise Refusal(400, f"{revision} is a tag; commits go to branches")
    return repo, user, ref


def _parse(body: bytes, repo: HubRepo) -> tuple[dict[str, Any], list[Change]]:
    header: dict[str, Any] = {}
    changes: list[Change] = []
    for line in body.splitlines():
        if not line.strip():
            continue
        if len(changes) >= _OPERATIONS_MAX:
            raise Refusal(413, f"the commit has more than {_OPERATIONS_MAX} operations")
        try:
            item = json_object(line)
            key, value = item["key"], item["value"]
            if not isinstance(value, dict):
                raise Refusal(400, "the commit holds a line whose value is not a JSON object")
            if key == "header":
                header = value
            elif key in ("file", "lfsFile", "deletedFile", "deletedFolder"):
                changes.append(_change(key, value, repo))
            else:
                raise Refusal(400, f"unknown operation in the commit: {key}")
        except (ValueError, KeyError, TypeError, OverflowError, RejectedObject) as error:
            raise Refusal(400, f"the commit holds a line that cannot be read: {error!r:.200}") from error
    return header, changes


def _collect_objects(hub: HubContext, repo: HubRepo, changes: list[Change]) -> None:
    """Refuse (400) a commit that names an LFS object that has arrived neither by LFS nor by Xet."""
    named = {change.pointer: change.path for change in changes if change.pointer}
    repo.xet.adopt((pointer for pointer in named if not repo.objects.has(pointer)), repo.objects)
    for pointer, path in named.items():
        if not repo.objects.has(pointer):
            raise Refusal(400, f"{path} names an LFS object that was never uploaded: {pointer.sha256}")
    if hub.xet:
        repo.xet.keep(named, repo.objects)


def _check_readme(changes: list[Change], kind: Kind) -> None:
    """Refuse (400) a card that the Hub would not have, with all that is wrong with it."""
    for change in changes:
        if change.path == "README.md" and change.content is not None:
            errors = check_card(change.content.decode(errors="replace"), kind).errors
            if errors:
                raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")


def _gitignore(repo: HubRepo, commit: pygit2.Commit) -> str:
    entry = repo.entry(commit, ".gitignore")
    return "" if entry is None or entry.folder else repo.content(entry).decode(errors="replace")


def _ignored(paths: list[str], gitignore: str) -> set[str]:
    """Those of ``paths`` that a .gitignore at the root rules out; git itself decides, in an empty repo."""
    if not gitignore:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        git = pygit2.init_repository(folder)
        git.config["core.excludesFile"] = os.devnull
        (Path(folder) / ".gitignore").write_text(gitignore)
        return {path for path in paths if git.path_is_ignored(path)}


def _change(key: str, value: dict[str, Any], repo: HubRepo) -> Change:
    path = str(value["path"])
    if key == "deletedFile":
        return Change(path)
    if key == "deletedFolder":
        return Change(path, folder=True)
    if key == "lfsFile":
        sha256 = str(value["oid"])
        repo.objects.path(sha256)  # raises for what is no sha256
        size = value.get("size")
        pointer = repo.objects.pointer(sha256) if size is None else Pointer(sha256, int(size))
        content = pointer.encode()
    else:
        text = value["content"]
        if not isinstance(text, str):
            raise TypeError("the content of a file is no text")
        encoded = value.get("encoding") == "base64"
        content = base64.b64decode(text, validate=True) if encoded else text.encode()
        named = Pointer.decode(content)
        if named is None:
            return Change(path, content)
        pointer = named
    return Change(path, content, pointer=pointer)
