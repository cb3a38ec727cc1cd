"""Branches and tags, and their history as one commit."""

from __future__ import annotations

from typing import Any

from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import NoSuchRevision
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer


def refs(hub: HubContext, call: Call) -> Answer:
    """GET …/refs."""
    repo = hub.repo(call)
    listed: dict[str, Any] = {
        "branches": repo.refs("refs/heads/"),
        "converts": [],
        "tags": repo.refs("refs/tags/"),
    }
    if call.flag("include_prs"):
        listed["pullRequests"] = repo.refs("refs/pr/")
    return json_answer(listed)


def create(hub: HubContext, call: Call) -> Answer:
    """POST …/branch/B, from ``startingPoint`` or main, and …/tag/V with the tag's name in the body."""
    wanted, name = call.json(), call.groups["name"]
    if call.groups["what"] == "branch":
        ref, start = f"refs/heads/{name}", str(wanted.get("startingPoint") or "main")
    else:
        ref, start = f"refs/tags/{wanted.get('tag', '')}", name
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        repo.create_ref(ref, repo.head(start))
    return json_answer({})


def delete(hub: HubContext, call: Call) -> Answer:
    """DELETE …/branch/B and …/tag/T; main stays."""
    ref = f"refs/{'heads' if call.groups['what'] == 'branch' else 'tags'}/{call.groups['name']}"
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        if ref == "refs/heads/main":
            raise Refusal(403, f"Cannot delete {ref}: it is the default branch")
        repo.delete_ref(ref)
    return Answer()


def squash(hub: HubContext, call: Call) -> Answer:
    """POST …/super-squash/B: one commit in place of all that led to the branch."""
    message = str(call.json().get("message") or "Super-squash")
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        user = hub.reader(call)
        ref = repo.ref_of(call.groups["revision"])
        if ref is None or ref.startswith("refs/tags/"):
            raise NoSuchRevision(call.groups["revision"])
        sha = repo.commit(None, repo.head(ref).tree.id, None, message, user)
        repo.git.references[ref].set_target(sha)
    return json_answer({})
