"""Discussions and pull requests as the client's community API reads them; kept in the repo's settings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import HubRepo, iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer


def opened(
    repo: HubRepo, user: str, title: str, text: str, *, base: str | None, draft: bool = False
) -> dict[str, Any]:
    """Add a discussion to ``repo``, a pull request where it has a ``base``; the caller holds the lock."""
    discussion: dict[str, Any] = {
        "num": len(repo.settings.discussions) + 1,
        "title": title,
        "author": user,
        "status": "draft" if draft else "open",
        "createdAt": iso_date(),
        "isPullRequest": base is not None,
        "base": f"refs/heads/{base}" if base else None,
        "merged": None,
        "events": [_comment(user, text)],
    }
    repo.settings.discussions.append(discussion)
    repo.save_settings()
    return discussion


def find(repo: HubRepo, number: int) -> dict[str, Any]:
    """Discussion ``number``. Raises Refusal where there is none."""
    if not 0 < number <= len(repo.settings.discussions):
        raise Refusal(404, f"no discussion {number} in {repo.settings.name}")
    return repo.settings.discussions[number - 1]


def check_enabled(repo: HubRepo) -> None:
    """Refuse (403) new discussions and pull requests where the repo's settings switch them off."""
    if repo.settings.discussions_disabled:
        raise Refusal(403, f"Discussions are disabled for {repo.settings.name}")


def listing(hub: HubContext, call: Call) -> Answer:
    """GET …/discussions: one page with all that match."""
    repo = hub.repo(call)
    kind, status = call.query.get("type", ["all"])[0], call.query.get("status", ["all"])[0]
    author = call.query.get("author", [None])[0]
    found = [
        _summary(repo, discussion)
        for discussion in reversed(repo.settings.discussions)
        if kind in ("all", "pull_request" if discussion["isPullRequest"] else "discussion")
        and status in ("all", "open" if discussion["status"] in ("open", "draft") else "closed")
        and author in (None, discussion["author"])
    ]
    return json_answer({"discussions": found, "count": len(found), "start": 0})


def create(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions: a discussion, or a draft pull request that starts at main."""
    wanted = call.json()
    title, description = str(wanted.get("title", "")).strip(), str(wanted.get("description", ""))
    if not title:
        raise Refusal(400, '"title" is not allowed to be empty')
    with hub.store.lock:
        repo, user = hub.repo(call), hub.reader(call)
        check_enabled(repo)
        base = "main" if wanted.get("pullRequest") else None
        discussion = opened(repo, user, title, description, base=base, draft=bool(base))
        if base:
            repo.create_ref(f"refs/pr/{discussion['num']}", repo.head(base))
    return json_answer(_summary(repo, discussion), 201)


def details(hub: HubContext, call: Call) -> Answer:
    """GET …/discussions/N."""
    repo = hub.repo(call)
    discussion = find(repo, int(call.groups["number"]))
    described = {**_summary(repo, discussion), "events": discussion["events"], "filesWithConflicts": []}
    if discussion["isPullRequest"]:
        head = repo.head(f"refs/pr/{discussion['num']}")
        fork = repo.git.merge_base(head.id, repo.head(discussion["base"]).id)
        for commit in repo.history(head):
            if commit.id == fork:
                break
            data = {"subject": commit.message.partition("\n")[0], "oid": str(commit.id)}
            described["events"] = [*described["events"], _event(commit.author.name, "commit", data)]
        described["changes"] = {"base": discussion["base"], "mergeCommitId": discussion["merged"]}
        if call.flag("diff"):
            base = repo.head(str(fork)) if fork else None
            described["diff"] = repo.git.diff(base.id, head.id).patch if base else ""
    return json_answer(described)


def comment(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/comment."""
    text = str(call.json().get("comment", ""))
    with _changing(hub, call) as (_, discussion):
        event = _comment(hub.reader(call), text)
        discussion["events"].append(event)
    return json_answer({"newMessage": event})


def edit(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/comment/C/edit: by its author."""
    content = str(call.json().get("content", ""))
    with _changing(hub, call) as (_, discussion):
        event = _comment_of(call, discussion)
        author = event["author"]
        if hub.reader(call) != author["name"]:
            raise Refusal(403, f"Forbidden: the comment is {author['name']}'s")
        if event["data"]["hidden"]:
            raise Refusal(403, "Forbidden: the comment is hidden")
        event["data"] |= {"edited": True, "latest": {"raw": content, "author": author}}
    return json_answer({"updatedComment": event})


def hide(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/comment/C/hide: by its author or who may write to the repo, for good."""
    with _changing(hub, call) as (repo, discussion):
        event = _comment_of(call, discussion)
        _check_part(hub, call, repo, event["author"]["name"])
        event["data"] |= {"hidden": True, "latest": {"raw": "", "author": event["author"]}}
    return json_answer({"updatedComment": event})


def rename(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/title: by its author or who may write to the repo."""
    title = str(call.json().get("title", "")).strip()
    if not title:
        raise Refusal(400, '"title" is not allowed to be empty')
    with _changing(hub, call) as (repo, discussion):
        user = _check_part(hub, call, repo, discussion["author"])
        event = _event(user, "title-change", {"from": discussion["title"], "to": title})
        discussion["title"] = title
        discussion["events"].append(event)
    return json_answer({"newTitle": event})


def status(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/status: open or closed."""
    wanted = call.json()
    if wanted.get("status") not in ("open", "closed"):
        raise Refusal(400, "status must be open or closed")
    with _changing(hub, call) as (repo, discussion):
        user = _check_part(hub, call, repo, discussion["author"])
        if discussion["status"] == "merged":
            raise Refusal(400, f"discussion {discussion['num']} is merged")
        if str(wanted.get("comment", "")).strip():
            discussion["events"].append(_comment(user, str(wanted["comment"])))
        event = _changed(discussion, user, wanted["status"])
    return json_answer({"newStatus": event})


def merge(hub: HubContext, call: Call) -> Answer:
    """POST …/discussions/N/merge: squash the pull request onto its base branch."""
    said = str(call.json().get("comment") or "").strip()
    with _changing(hub, call, write=True) as (repo, discussion):
        user = hub.reader(call)
        if not discussion["isPullRequest"] or discussion["status"] != "open":
            raise Refusal(400, f"discussion {discussion['num']} is not an open pull request")
        head, base = repo.head(f"refs/pr/{discussion['num']}"), repo.head(discussion["base"])
        merged = repo.git.merge_commits(base, head)
        if merged.conflicts:
            raise Refusal(409, f"pull request {discussion['num']} conflicts with {discussion['base']}")
        title, tree = f"{discussion['title']} (#{discussion['num']})", merged.write_tree(repo.git)
        discussion["merged"] = repo.commit(discussion["base"], tree, base, title, user)
        if said:
            discussion["events"].append(_comment(user, said))
        _changed(discussion, user, "merged")
    return json_answer({"mergeCommitId": discussion["merged"]})


@contextmanager
def _changing(hub: HubContext, call: Call, write: bool = False) -> Iterator[tuple[HubRepo, dict[str, Any]]]:
    """The repo and the discussion that the path names, under the store's lock; saved if all goes well."""
    with hub.store.lock:
        repo = hub.repo(call, write=write)
        yield repo, find(repo, int(call.groups["number"]))
        repo.save_settings()


def _check_part(hub: HubContext, call: Call, repo: HubRepo, author: str) -> str:
    """The user who asks, if it is ``author`` or one who may write to the repo. Raises Refusal."""
    user = hub.reader(call)
    return user if user == author else hub.writer(call, repo.settings.name, repo)


def _comment_of(call: Call, discussion: dict[str, Any]) -> dict[str, Any]:
    """The comment that the path names. Raises Refusal where there is none."""
    for event in discussion["events"]:
        if event["type"] == "comment" and event["id"] == call.groups["comment"]:
            found: dict[str, Any] = event
            return found
    raise Refusal(404, f"no such comment in discussion {discussion['num']}")


def _changed(discussion: dict[str, Any], user: str, status: str) -> dict[str, Any]:
    event = _event(user, "status-change", {"status": status})
    discussion["status"] = status
    discussion["events"].append(event)
    return event


def _summary(repo: HubRepo, discussion: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: discussion[name] for name in ("num", "title", "status", "createdAt", "isPullRequest")}
    repo_name = {"name": repo.settings.name, "type": repo.settings.kind}
    return {**wanted, "author": {"name": discussion["author"]}, "repo": repo_name}


def _comment(user: str, text: str) -> dict[str, Any]:
    latest = {"raw": text, "author": {"name": user}}
    return _event(user, "comment", {"edited": False, "hidden": False, "latest": latest})


def _event(user: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    made = {"id": f"{time.time_ns():x}", "type": kind, "createdAt": iso_date()}
    return {**made, "author": {"name": user}, "data": data}
