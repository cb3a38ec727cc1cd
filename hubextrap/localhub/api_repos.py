"""Accounts and repos: whoami, create, delete, settings, info, listing, refs, branches, tags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from hubextrap.localhub.access import check_content, may_see
from hubextrap.localhub.listing import linked_pages
from hubextrap.localhub.repository import Conflict, HubRepo, Kind, NoSuchRevision, iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer

if TYPE_CHECKING:
    from hubextrap.localhub.hub import LocalHub

_KINDS: tuple[Kind, ...] = ("model", "dataset", "space")


def whoami(hub: LocalHub, call: Call) -> Answer:
    """GET /api/whoami-v2."""
    account = hub.account(call)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    if account.repo is not None:
        raise Refusal(403, "Forbidden: this token stands for a repo and for no user")
    role = "read" if account.read_only else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": role}}
    return json_answer(
        {
            "type": "user",
            "id": account.user,
            "name": account.user,
            "fullname": account.user,
            "orgs": [],
            "auth": auth,
        }
    )


def create(hub: LocalHub, call: Call) -> Answer:
    """POST /api/repos/create; a repo that exists is a 409 whose body still holds its URL."""
    wanted = call.json()
    kind, name, user = _named(hub, call, wanted)
    url = hub.page(call, kind, name)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    try:
        hub.create_repo(name, private=private, repo_type=kind, author=user)
    except FileExistsError:
        raise Refusal(409, f"You already created this {kind} repo: {name}", url=url) from None
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return json_answer({"url": url, "name": name, "id": name})


def delete(hub: LocalHub, call: Call) -> Answer:
    """DELETE /api/repos/delete."""
    kind, name, _ = _named(hub, call, call.json())
    hub.store.delete(hub.repo(call, kind, name, write=True))
    return Answer()


def settings(hub: LocalHub, call: Call) -> Answer:
    """PUT …/settings: visibility and gating."""
    wanted = call.json()
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        if "visibility" in wanted:
            repo.settings.private = wanted["visibility"] == "private"
        if "private" in wanted:
            repo.settings.private = bool(wanted["private"])
        if "gated" in wanted:
            if wanted["gated"] not in (False, "auto", "manual"):
                raise Refusal(400, "gated must be false, auto or manual")
            repo.settings.gated = wanted["gated"]
        repo.save_settings()
    return json_answer({"private": repo.settings.private, "gated": repo.settings.gated})


def auth_check(hub: LocalHub, call: Call) -> Answer:
    """GET …/auth-check[/write]: whether this account gets at the files, or may write."""
    repo = hub.repo(call, write=call.groups.get("right") == "write")
    check_content(repo, hub.account(call))
    return json_answer({})


def info(hub: LocalHub, call: Call) -> Answer:
    """GET /api/T/R[/revision/V]."""
    repo = hub.repo(call)
    return json_answer(
        _info(repo, call.groups.get("revision", "main"), blobs=call.flag("blobs"), siblings=True)
    )


def list_repos(hub: LocalHub, call: Call) -> Answer:
    """GET /api/T?author=&search=&filter=&limit=: the repos that this account may see, by name."""
    account = hub.account(call)
    author, search = call.query.get("author", [None])[0], call.query.get("search", [""])[0].lower()
    tags = set(call.query.get("filter", []))
    found = []
    for repo in hub.store.all(hub.kind(call)):
        owner = repo.settings.name.partition("/")[0]
        if may_see(repo, account) and author in (None, owner) and search in repo.settings.name.lower():
            described = _info(repo, "main", blobs=False, siblings=call.flag("full"))
            if tags <= set(described["tags"]):
                found.append(described)
    return linked_pages(call, hub.base(call), found, default_limit=1000)


def refs(hub: LocalHub, call: Call) -> Answer:
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


def create_branch(hub: LocalHub, call: Call) -> Answer:
    """POST …/branch/B, from ``startingPoint`` or main."""
    start = call.json().get("startingPoint") or "main"
    return _create_ref(hub, call, "refs/heads/", call.groups["name"], start)


def create_tag(hub: LocalHub, call: Call) -> Answer:
    """POST …/tag/V with the tag's name in the body."""
    wanted = call.json()
    return _create_ref(hub, call, "refs/tags/", str(wanted.get("tag", "")), call.groups["name"])


def delete_branch(hub: LocalHub, call: Call) -> Answer:
    """DELETE …/branch/B; main stays."""
    if call.groups["name"] == "main":
        hub.repo(call, write=True)
        raise Refusal(403, "the branch main cannot be deleted")
    return _delete_ref(hub, call, f"refs/heads/{call.groups['name']}")


def delete_tag(hub: LocalHub, call: Call) -> Answer:
    """DELETE …/tag/T."""
    return _delete_ref(hub, call, f"refs/tags/{call.groups['name']}")


def validate_yaml(hub: LocalHub, call: Call) -> Answer:
    """POST /api/validate-yaml: whether a README's metadata is a YAML mapping."""
    try:
        card_data(str(call.json().get("content", "")))
    except ValueError as error:
        return json_answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return json_answer({"errors": [], "warnings": []})


def card_data(readme: str) -> dict[str, Any]:
    """The metadata at the head of a README; empty if it has none.

    Raises:
        ValueError: it is not a YAML mapping.
    """
    if not readme.startswith("---\n"):
        return {}
    try:
        metadata = yaml.safe_load(readme[4:].partition("\n---")[0])
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata is not YAML: {error}") from error
    if not isinstance(metadata, dict | None):
        raise ValueError("the metadata is not a mapping")
    return metadata or {}


def _named(hub: LocalHub, call: Call, wanted: dict[str, Any]) -> tuple[Kind, str, str]:
    """Kind, full name and user of a request that names a repo in its body."""
    kind = wanted.get("type") or "model"
    if kind not in _KINDS:
        raise Refusal(400, f"no such repo type: {kind}")
    account = hub.account(call)
    owner = wanted.get("organization") or (account.user if account else "")
    name = f"{owner}/{wanted.get('name')}"
    return kind, name, hub.writer(call, name)


def _info(repo: HubRepo, revision: str, *, blobs: bool, siblings: bool) -> dict[str, Any]:
    try:
        commit = repo.head(revision)
    except NoSuchRevision:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None
    name = repo.settings.name
    readme = repo.entry(commit, "README.md")
    try:
        card = card_data(repo.content(readme).decode(errors="replace")) if readme and not readme.lfs else {}
    except ValueError:
        card = {}
    described: dict[str, Any] = {
        "_id": name,
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": str(commit.id),
        "lastModified": iso_date(commit),
        "createdAt": repo.settings.created,
        "private": repo.settings.private,
        "gated": repo.settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
    }
    if card.get("library_name"):
        described["library_name"] = card["library_name"]
    if siblings:
        described["siblings"] = _siblings(repo, revision, blobs)
    return described


def _siblings(repo: HubRepo, revision: str, blobs: bool) -> list[dict[str, Any]]:
    listed = []
    for entry in repo.entries(repo.head(revision), recursive=True):
        if entry.folder:
            continue
        sibling: dict[str, Any] = {"rfilename": entry.path}
        if blobs:
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                pointer_size = len(entry.lfs.encode())
                sibling["lfs"] = {"sha256": entry.lfs.sha256, "size": entry.size, "pointerSize": pointer_size}
        listed.append(sibling)
    return listed


def _create_ref(hub: LocalHub, call: Call, prefix: str, name: str, start: str) -> Answer:
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        try:
            repo.create_ref(prefix + name, hub.head(repo, start))
        except Conflict as error:
            raise Refusal(409, f"Reference already exists or conflicts with another: {error}") from error
        except ValueError as error:
            raise Refusal(400, str(error)) from error
    return json_answer({})


def _delete_ref(hub: LocalHub, call: Call, ref: str) -> Answer:
    with hub.store.lock:
        try:
            hub.repo(call, write=True).delete_ref(ref)
        except NoSuchRevision:
            raise Refusal(404, f"no such reference: {ref}", "RevisionNotFound") from None
    return Answer()
