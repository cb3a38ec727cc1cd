"""Branches and tags, and their history as one commit."""

from __future__ import annotations

from typing import Any

from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import Conflict, NoSuchRevision
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


def create_branch(hub: HubContext, call: Call) -> Answer:
    """POST …/branch/B, from ``startingPoint`` or main."""
    start = call.json().get("startingPoint") or "main"
    return _create_ref(hub, call, "refs/heads/", call.groups["name"], start)


def create_tag(hub: HubContext, call: Call) -> Answer:
    """POST …/tag/V with the tag's name in the body."""
    wanted = call.json()
    return _create_ref(hub, call, "refs/tags/", str(wanted.get("tag", "")), call.groups["name"])


def delete_branch(hub: HubContext, call: Call) -> Answer:
    """DELETE …/branch/B; main stays."""
    if call.groups["name"] == "main":
        hub.repo(call, write=True)
        raise Refusal(403, "Cannot delete refs/heads/main: it is the default branch")
    return _delete_ref(hub, call, f"refs/heads/{call.groups['name']}")


def delete_tag(hub: HubContext, call: Call) -> Answer:
    """DELETE …/tag/T."""
    return _delete_ref(hub, call, f"refs/tags/{call.groups['name']}")


def squash(hub: HubContext, call: Call) -> Answer:
    """POST …/super-squash/B: one commit in place of all that led to the branch."""
    message = str(call.json().get("message") or "Super-squash")
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        user = hub.reader(call)
        ref = repo.ref_of(call.groups["revision"])
        if ref is None or ref.startswith("refs/tags/"):
            raise Refusal(404, f"Invalid rev id: {call.groups['revision']}", "RevisionNotFound")
        repo.squash(ref, message, user)
    return json_answer({})


def _create_ref(hub: HubContext, call: Call, prefix: str, name: str, start: str) -> Answer:
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        try:
            repo.create_ref(prefix + name, hub.head(repo, start))
        except Conflict as error:
            raise Refusal(409, str(error)) from error
        except ValueError as error:
            raise Refusal(400, str(error)) from error
    return json_answer({})


def _delete_ref(hub: HubContext, call: Call, ref: str) -> Answer:
    with hub.store.lock:
        try:
            hub.repo(call, write=True).delete_ref(ref)
        except NoSuchRevision:
            raise Refusal(404, f"Invalid rev id: {call.groups['name']}", "RevisionNotFound") from None
    return Answer()
