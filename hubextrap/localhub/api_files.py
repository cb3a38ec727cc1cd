"""Reading: trees, paths-info, commits, and the files themselves."""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import quote

import pygit2

from hubextrap.localhub.access import check_content
from hubextrap.localhub.admission import read_query
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import Entry, HubRepo, iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, linked_pages, list_in

_PATHS_MAX = 10_000


def tree(hub: HubContext, call: Call) -> Answer:
    """GET …/tree/V[/path]."""
    repo = hub.repo(call)
    commit = repo.head(call.groups["revision"])
    path = call.groups.get("path", "").strip("/")
    if path:
        folder = repo.entry(commit, path)
        if folder is None or not folder.folder:
            raise Refusal(404, f"{path} does not exist on {call.groups['revision']}", "EntryNotFound")

    def shown(page: list[tuple[str, pygit2.Object]]) -> list[dict[str, Any]]:
        return _items(hub, repo, commit, [repo.entry_of(*one) for one in page], expand=call.flag("expand"))

    found = list(repo.named(commit, path, recursive=call.flag("recursive")))
    return linked_pages(call, hub.base(call), found, default_limit=hub.page_size, shown=shown)


def paths_info(hub: HubContext, call: Call) -> Answer:
    """POST …/paths-info/V: a form of paths; those that are missing are left out."""
    repo = hub.repo(call)
    commit = repo.head(call.groups["revision"])
    if "json" in call.headers.get("Content-Type", ""):
        form = call.json()
        paths, expand = list_in(form, "paths", _PATHS_MAX, str), bool(form.get("expand"))
    else:
        fields = read_query(call.body.read().decode(errors="replace"))
        paths, expand = fields.get("paths", []), fields.get("expand", [""])[0].lower() in ("1", "true")
    found = [entry for path in dict.fromkeys(paths) if (entry := repo.entry(commit, path.strip("/")))]
    return json_answer(_items(hub, repo, commit, found, expand))


def commits(hub: HubContext, call: Call) -> Answer:
    """GET …/commits/V, newest first."""
    repo = hub.repo(call)
    formatted = "formatted" in (*call.query.get("expand[]", []), *call.query.get("expand", []))
    formatted = formatted or call.flag("formatted")
    listed = []
    for commit in repo.history(repo.head(call.groups["revision"])):
        title, _, message = commit.message.partition("\n")
        authors = [{"user": commit.author.name, "avatar": ""}]
        message = message.strip()
        item: dict[str, Any] = {"id": str(commit.id), "title": title, "message": message, "authors": authors}
        if formatted:
            item["formatted"] = {"title": html.escape(title), "message": _as_html(message)}
        listed.append({**item, "date": iso_date(commit.commit_time)})
    return linked_pages(call, hub.base(call), listed, default_limit=hub.page_size)


def resolve(hub: HubContext, call: Call) -> Answer:
    """HEAD and GET /R/resolve/V/path: the file, or a redirect to the CDN."""
    repo = hub.repo(call)
    commit = repo.head(call.groups["revision"])
    check_content(repo, hub.account(call))
    path = call.groups["path"]
    entry = repo.entry(commit, path)
    headers = {"X-Repo-Commit": str(commit.id)}
    if entry is None or entry.folder:
        missing = Refusal(404, "Entry not found", "EntryNotFound")
        missing.headers = headers
        raise missing
    headers["Content-Type"] = "application/octet-stream"
    headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(path.rpartition('/')[2])}"
    if entry.lfs is None:
        headers["ETag"] = f'"{entry.oid}"'
        return Answer(200, repo.content(entry), headers, ranges=True)
    headers["ETag"] = headers["X-Linked-Etag"] = f'"{entry.lfs.sha256}"'
    headers["X-Linked-Size"] = str(entry.size)
    xet_file = repo.xet.file(entry.lfs.sha256) if hub.xet else None
    if xet_file:
        api = f"{hub.base(call)}/api/{repo.settings.kind}s/{repo.settings.name}"
        headers["X-Xet-Hash"] = xet_file.hash
        headers["Link"] = f'<{api}/xet-read-token/{commit.id}>; rel="xet-auth"'
    location = hub.cdn_link(call, repo, entry.lfs.sha256)
    if location:
        return Answer(302, b"", {**headers, "Location": location, "Accept-Ranges": "bytes"})
    return Answer(200, repo.objects.path(entry.lfs.sha256), headers, ranges=True)


def _as_html(text: str) -> str:
    """The text's paragraphs; Markdown in them stays as it is."""
    return "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n") if part)


def _items(
    hub: HubContext, repo: HubRepo, commit: pygit2.Commit, entries: list[Entry], expand: bool
) -> list[dict[str, Any]]:
    changed = repo.last_changes(commit, [entry.path for entry in entries]) if expand else {}
    items = []
    for entry in entries:
        kind = "directory" if entry.folder else "file"
        item: dict[str, Any] = {"type": kind, "oid": entry.oid, "size": entry.size, "path": entry.path}
        if entry.lfs:
            pointer_size = len(entry.lfs.encode())
            item["lfs"] = {"oid": entry.lfs.sha256, "size": entry.size, "pointerSize": pointer_size}
            xet_file = repo.xet.file(entry.lfs.sha256) if hub.xet else None
            if xet_file:
                item["xetHash"] = xet_file.hash
        if entry.path in changed:
            last = changed[entry.path]
            title = last.message.partition("\n")[0]
            item["lastCommit"] = {"id": str(last.id), "title": title, "date": iso_date(last.commit_time)}
        items.append(item)
    return items
