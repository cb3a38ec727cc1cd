"""Writing: preupload and the commit, on a branch or as a pull request."""

from __future__ import annotations

import base64
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from hubextrap.localhub import discussions
from hubextrap.localhub.lfs import Pointer, RejectedObject
from hubextrap.localhub.repository import BadCommit, Change, Conflict, HubRepo
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer

if TYPE_CHECKING:
    from hubextrap.localhub.hub import LocalHub

_REGULAR_MAX = 10_000_000  # bytes; larger files are LFS whatever they hold
LFS_SUFFIXES = (
    *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".gguf", ".gz", ".h5", ".joblib", ".model", ".msgpack"),
    *(".npy", ".npz", ".onnx", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors"),
    *(".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"),
)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to LFS: by its suffix, as in .gitattributes, by size, or as binary data."""
    suffix = PurePosixPath(path).suffix.lower()
    return size > 0 and (suffix in LFS_SUFFIXES or size > _REGULAR_MAX or b"\0" in sample)


def preupload(hub: LocalHub, call: Call) -> Answer:
    """POST …/preupload/V: how each file is to be uploaded, and what is at its path now."""
    repo, _, _ = _target(hub, call)
    commit = hub.head(repo, call.groups["revision"])
    modes = []
    for file in call.json().get("files", []):
        path, size, sample = str(file["path"]), int(file["size"]), base64.b64decode(file.get("sample", ""))
        there = repo.entry(commit, path)
        mode: dict[str, Any] = {"path": path, "shouldIgnore": False}
        mode["uploadMode"] = "lfs" if is_lfs(path, size, sample) else "regular"
        if there and not there.folder:
            mode["oid"] = there.lfs.sha256 if there.lfs else there.oid
        modes.append(mode)
    return json_answer({"files": modes})


def commit(hub: LocalHub, call: Call) -> Answer:
    """POST …/commit/V[?create_pr=1]: one commit out of lines of JSON."""
    body = call.body.read()
    with hub.store.lock:
        repo, user, ref = _target(hub, call)
        header, changes = _parse(body, repo)
        summary = str(header.get("summary") or "Upload files")
        description = str(header.get("description") or "")
        message = f"{summary}\n\n{description}".strip()
        parent = hub.head(repo, call.groups["revision"])
        expected = header.get("parentCommit")
        if expected and not str(parent.id).startswith(str(expected)):
            raise Refusal(412, f"a commit has happened since: {call.groups['revision']} is at {parent.id}")
        if ref is None and not (repo.ref_of(call.groups["revision"]) or "").startswith("refs/heads/"):
            raise Refusal(400, "a pull request starts from a branch")
        number = len(repo.settings.discussions) + 1
        try:
            sha = repo.commit(
                ref or f"refs/pr/{number}", repo.tree_with(parent, changes), parent, message, user
            )
        except BadCommit as error:
            raise Refusal(400, str(error)) from error
        except Conflict as error:
            raise Refusal(412, str(error)) from error
        page = hub.page(call, repo.settings.kind, repo.settings.name)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}", "hookOutput": ""}
        if ref is None:
            base = call.groups["revision"]
            discussions.opened(repo, user, summary, description, pull_request=True, base=base, draft=False)
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    return json_answer(answer)


def _target(hub: LocalHub, call: Call) -> tuple[HubRepo, str, str | None]:
    """The repo, the user and the ref to commit to: None where a pull request is to be opened."""
    revision = call.groups["revision"]
    if call.flag("create_pr"):
        repo = hub.repo(call)
        return repo, hub.reader(call), None
    repo = hub.repo(call)
    ref = repo.ref_of(revision)
    if ref and ref.startswith("refs/pr/"):
        user = hub.reader(call)
        if discussions.find(repo, int(ref.rpartition("/")[2]))["author"] == user:
            return repo, user, ref
    user = hub.writer(call, repo.settings.name, repo)
    if ref is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if ref.startswith("refs/tags/"):
        raise Refusal(400, f"{revision} is a tag; commits go to branches")
    return repo, user, ref


def _parse(body: bytes, repo: HubRepo) -> tuple[dict[str, Any], list[Change]]:
    header: dict[str, Any] = {}
    changes = []
    for line in body.splitlines():
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key in ("file", "lfsFile", "deletedFile", "deletedFolder"):
                changes.append(_change(key, value, repo))
            else:
                raise Refusal(400, f"unknown operation in the commit: {key}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Refusal(400, f"the commit holds a line that cannot be read: {error!r}") from error
    return header, changes


def _change(key: str, value: dict[str, Any], repo: HubRepo) -> Change:
    path = str(value["path"])
    if key == "deletedFile":
        return Change(path)
    if key == "deletedFolder":
        return Change(path, folder=True)
    if key == "lfsFile":
        sha256 = str(value["oid"])
        size = value.get("size")
        pointer = Pointer(sha256, repo.objects.path(sha256).stat().st_size if size is None else int(size))
        content = pointer.encode()
    else:
        text = value["content"]
        content = base64.b64decode(text) if value.get("encoding") == "base64" else str(text).encode()
        named = Pointer.decode(content)
        if named is None:
            return Change(path, content)
        pointer = named
    try:
        there = repo.objects.has(pointer) or repo.xet.adopt(pointer, repo.objects)
    except RejectedObject as error:
        raise Refusal(400, f"{path}: {error}") from error
    if not there:
        raise Refusal(400, f"{path} names an LFS object that was never uploaded: {pointer.sha256}")
    return Change(path, content)
