"""What a repo is: its info, whole or as `expand` asks for it, and the listings of repos."""

from __future__ import annotations

from typing import Any

import pygit2

from hubextrap.localhub.access import may_see
from hubextrap.localhub.cards import card_data
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.repository import KINDS, HubRepo, Kind, iso_date
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, linked_pages

_EXPAND_ALL = """author cardData createdAt disabled lastModified likes private resourceGroup sha siblings tags
    trendingScore usedStorage gitalyUid xetEnabled"""
_EXPAND: dict[Kind, str] = {
    "model": """baseModels childrenModelCount config downloads downloadsAllTime evalResults gated gguf
        inference inferenceProviderMapping library_name mask_token model-index pipeline_tag safetensors spaces
        transformersInfo widgetData""",
    "dataset": "citation description downloads downloadsAllTime gated mainSize paperswithcode_id",
    "space": "datasets models region runtime sdk subdomain",
}
_ALWAYS = ("_id", "id", "modelId")


def info(hub: HubContext, call: Call) -> Answer:
    """GET /api/T/R[/revision/V]."""
    repo = hub.repo(call)
    wanted = _expanded(call, repo.settings.kind)
    commit = repo.head(call.groups.get("revision", "main"))
    return json_answer(_info(repo, commit, wanted, blobs=call.flag("blobs"), siblings=True))


def list_repos(hub: HubContext, call: Call) -> Answer:
    """GET /api/T?author=&search=&filter=&limit=&expand=: the repos that this account may see, by name."""
    account, kind = hub.account(call), hub.kind(call)
    wanted = _expanded(call, kind)
    author, search = call.query.get("author", [None])[0], call.query.get("search", [""])[0].lower()
    tags = set(call.query.get("filter", []))
    found = []
    for repo in hub.store.all(kind):
        owner = repo.settings.name.partition("/")[0]
        if may_see(repo, account) and author in (None, owner) and search in repo.settings.name.lower():
            commit = repo.head("main")
            if not tags or tags <= set(_tags(_card(repo, commit))):
                found.append(_info(repo, commit, wanted, blobs=False, siblings=call.flag("full")))
    return linked_pages(call, hub.base(call), found, default_limit=1000)


def list_mine(hub: HubContext, call: Call) -> Answer:
    """GET /api/settings/repositories, or of an organization: the account's repos and their storage."""
    account = hub.account(call)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    namespace = call.groups.get("namespace", account.user)
    if account.repo is not None or namespace != account.user:
        raise Refusal(403, f"Forbidden: this token has no access to the settings of {namespace}")
    repos = [repo for kind in KINDS for repo in hub.store.all(kind)]
    mine = [repo for repo in repos if repo.settings.name.partition("/")[0] == namespace]
    sizes = [_used_storage(repo) for repo in mine]
    listed = []
    for repo, size in zip(mine, sizes, strict=True):
        main = repo.head("main") if repo.ref_of("main") else None  # none yet while the repo is being made
        about = {
            "id": repo.settings.name,
            "type": repo.settings.kind,
            "updatedAt": iso_date(main.commit_time) if main else repo.settings.created,
            "visibility": "private" if repo.settings.private else "public",
        }
        listed.append({**about, "storage": size, "storagePercent": 100 * size / max(1, sum(sizes))})
    return linked_pages(call, hub.base(call), listed, default_limit=1000)


def _expanded(call: Call, kind: Kind) -> frozenset[str] | None:
    """The fields that the query asks for, or None. Raises Refusal where there is no such field."""
    asked = [*call.query.get("expand", []), *call.query.get("expand[]", [])]
    known = [*_EXPAND_ALL.split(), *_EXPAND[kind].split()]
    if not set(asked) <= set(known):
        raise Refusal(400, f'"expand" must be one of [{", ".join(known)}]')
    return frozenset(asked) or None


def _info(
    repo: HubRepo, commit: pygit2.Commit, wanted: frozenset[str] | None, *, blobs: bool, siblings: bool
) -> dict[str, Any]:
    name = repo.settings.name
    card = _card(repo, commit)
    described: dict[str, Any] = {
        "_id": name,
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": str(commit.id),
        "lastModified": iso_date(commit.commit_time),
        "createdAt": repo.settings.created,
        "private": repo.settings.private,
        "gated": repo.settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "cardData": card,
    }
    for field in ("library_name", "pipeline_tag", "model-index", "sdk"):
        if card.get(field):
            described[field] = card[field]
    if wanted is None:
        if siblings:
            described["siblings"] = _siblings(repo, commit, blobs)
        return described
    described |= {"downloadsAllTime": 0, "trendingScore": 0, "resourceGroup": None, "xetEnabled": True}
    if "usedStorage" in wanted:
        described["usedStorage"] = _used_storage(repo)
    if "siblings" in wanted:
        described["siblings"] = _siblings(repo, commit, blobs)
    return {field: value for field, value in described.items() if field in wanted or field in _ALWAYS}


def _card(repo: HubRepo, commit: pygit2.Commit) -> dict[str, Any]:
    readme = repo.entry(commit, "README.md")
    if readme is None or readme.folder or readme.lfs:
        return {}
    try:
        return card_data(repo.content(readme).decode(errors="replace"))
    except ValueError:
        return {}


def _tags(card: dict[str, Any]) -> list[str]:
    tags = card.get("tags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _siblings(repo: HubRepo, commit: pygit2.Commit, blobs: bool) -> list[dict[str, Any]]:
    listed = []
    for entry in repo.entries(commit, recursive=True):
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


def _used_storage(repo: HubRepo) -> int:
    """Bytes of all LFS objects and of git's, as they lie on disk."""
    folders = (repo.folder / "lfs", repo.folder / "objects")
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
