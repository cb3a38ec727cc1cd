"""Accounts and repos: whoami, CI jobs, create, delete, move, duplicate, settings, and the check of a card."""

from __future__ import annotations

import secrets
import time
from typing import Any

from hubextrap.localhub.access import Account, check_content, same
from hubextrap.localhub.cards import SDKS, check_card
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.lfs import RejectedObject
from hubextrap.localhub.repository import KINDS, Kind, settings_for
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer, list_in

_FILES_MAX = 25_000
_CI_SECONDS = 3600
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


def whoami(hub: HubContext, call: Call) -> Answer:
    """GET /api/whoami-v2."""
    account = hub.account(call)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    if account.repo is not None:
        raise Refusal(403, "Forbidden: this token stands for a repo and for no user")
    role = "read" if account.read_only else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": role}}
    names = dict.fromkeys(("id", "name", "fullname"), account.user)
    return json_answer({"type": "user", **names, "avatarUrl": "", "isPro": False, "orgs": [], "auth": auth})


def exchange(hub: HubContext, call: Call) -> Answer:
    """POST /oauth/token: a CI job's identity for a token that opens one repo for an hour (RFC 8693)."""
    wanted = call.json()
    if (wanted.get("grant_type"), wanted.get("subject_token_type")) != (_GRANT, _ID_TOKEN):
        raise Refusal(400, "invalid_request")
    repo = str(wanted.get("resource", ""))
    identity = str(wanted.get("subject_token", ""))
    known = [same(identity, trusted) for name, trusted in hub.trusted if name == repo]
    if not any(known):
        raise Refusal(400, "invalid_grant")
    token = f"hf_jwt_{secrets.token_urlsafe(24)}"
    now = time.time()
    for old in [old for old, account in list(hub.tokens.items()) if account.until < now]:
        hub.tokens.pop(old, None)
    hub.tokens[token] = Account(repo.partition("/")[0], repo=repo, until=now + _CI_SECONDS)
    return json_answer({"access_token": token, "token_type": "bearer", "expires_in": _CI_SECONDS})


def create(hub: HubContext, call: Call) -> Answer:
    """POST /api/repos/create; a repo that exists is a 409 whose body still holds its URL."""
    wanted = call.json()
    kind = _kind(wanted)
    name = _name(hub, call, wanted)
    user = hub.writer(call, name)
    try:
        sdk = wanted.get("sdk") if kind == "space" else None
        if sdk is not None and sdk not in SDKS:
            raise Refusal(400, f'"sdk" must be one of [{", ".join(SDKS)}]')
        hub.create_repo(name, private=_wants_private(wanted), repo_type=kind, author=user, sdk=sdk)
    except FileExistsError as there:
        url = hub.page(call, kind, str(there))
        raise Refusal(409, f"You already created this {kind} repo: {there}", url=url) from None
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return json_answer({"url": hub.page(call, kind, name), "name": name, "id": name})


def delete(hub: HubContext, call: Call) -> Answer:
    """DELETE /api/repos/delete."""
    wanted = call.json()
    kind = _kind(wanted)
    name = _name(hub, call, wanted)
    hub.writer(call, name)
    with hub.store.lock:
        hub.store.delete(hub.repo(call, kind, name, write=True))
    return Answer()


def move(hub: HubContext, call: Call) -> Answer:
    """POST /api/repos/move: by the owner of both names; the old one is redirected from now on."""
    wanted = call.json()
    kind, old, new = _kind(wanted), str(wanted.get("fromRepo", "")), str(wanted.get("toRepo", ""))
    with hub.store.lock:
        hub.check_owner(call, new)
        repo = hub.repo(call, kind, old)
        hub.check_owner(call, repo.settings.name)
        try:
            hub.move_repo(repo.settings.name, new, repo_type=kind)
        except FileExistsError as there:
            raise Refusal(409, f"A {kind} repository called {there} already exists") from None
        except ValueError as error:
            raise Refusal(400, str(error)) from error
    return json_answer({"url": hub.page(call, kind, new)})


def duplicate(hub: HubContext, call: Call) -> Answer:
    """POST …/duplicate: a new repo with the history and the objects of one that the account may read."""
    wanted = call.json()
    repo = hub.repo(call)
    check_content(repo, hub.account(call))
    kind, name = repo.settings.kind, str(wanted.get("repository", ""))
    hub.check_owner(call, name)
    private = _wants_private(wanted) if {"visibility", "private"} & set(wanted) else repo.settings.private
    try:
        hub.store.copy(repo, settings_for(kind, name, private, repo.settings.gated))
    except FileExistsError as there:
        url = hub.page(call, kind, str(there))
        raise Refusal(409, f"A {kind} repository called {there} already exists", url=url) from None
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return json_answer({"url": hub.page(call, kind, name), "filesCopyPending": False})


def duplicate_lfs(hub: HubContext, call: Call) -> Answer:
    """POST …/lfs-files/duplicate: give LFS objects of this repo to another one, for a commit that copies."""
    wanted = call.json()
    source = hub.repo(call)
    check_content(source, hub.account(call))
    hub.reader(call)  # pull requests are open to all users, and so are the objects that they name
    try:
        target = hub.repo(call, _kind(wanted["target"]), str(wanted["target"]["name"]))
        files = [str(file["sha256"]) for file in list_in(wanted, "files", _FILES_MAX, dict)]
    except (AttributeError, KeyError, TypeError) as error:
        raise Refusal(400, f"a target and files are needed: {error!r:.200}") from error
    failed = []
    for sha256 in files:
        try:
            target.objects.link(source.objects.pointer(sha256), source.objects)
        except (RejectedObject, ValueError) as error:
            failed.append({"sha256": sha256, "error": str(error)})
    return json_answer({"failed": failed})


def settings(hub: HubContext, call: Call) -> Answer:
    """PUT …/settings: visibility, gating, discussions on or off."""
    wanted = call.json()
    unknown = set(wanted) - {"visibility", "private", "gated", "discussionsDisabled"}
    if unknown:
        raise Refusal(400, f"this hub has no setting {', '.join(sorted(unknown))}")
    if wanted.get("visibility", "public") not in ("public", "private"):
        raise Refusal(400, '"visibility" must be one of [public, private]')
    if wanted.get("gated", False) not in (False, "auto", "manual"):
        raise Refusal(400, '"gated" must be one of [false, auto, manual]')
    with hub.store.lock:
        repo = hub.repo(call, write=True)
        if {"visibility", "private"} & set(wanted):
            repo.settings.private = _wants_private(wanted)
        repo.settings.gated = wanted.get("gated", repo.settings.gated)
        if "discussionsDisabled" in wanted:
            repo.settings.discussions_disabled = bool(wanted["discussionsDisabled"])
        repo.save_settings()
    return json_answer({"private": repo.settings.private, "gated": repo.settings.gated})


def auth_check(hub: HubContext, call: Call) -> Answer:
    """GET …/auth-check[/write]: whether this account may read the files, or write."""
    repo = hub.repo(call, write=call.groups.get("right") == "write")
    check_content(repo, hub.account(call))
    return json_answer({})


def validate_yaml(hub: HubContext, call: Call) -> Answer:
    """POST /api/validate-yaml: errors and warnings, as JSON or as the text that a push would show."""
    wanted = call.json()
    kind = _kind({"type": wanted.get("repoType")})
    found = check_card(str(wanted.get("content", "")), kind)
    status = 400 if found.errors else 200
    if "text/plain" in call.headers.get("Accept", ""):
        lines = [f"- Error: {error}" for error in found.errors]
        lines += [f"- Warning: {warning}" for warning in found.warnings]
        return Answer(status, "\n".join(lines).encode(), {"Content-Type": "text/plain; charset=utf-8"})
    told = {"errors": found.errors, "warnings": found.warnings}
    return json_answer({kind: [{"message": text} for text in texts] for kind, texts in told.items()}, status)


def _kind(wanted: dict[str, Any]) -> Kind:
    """The repo type that a body names."""
    for kind in KINDS:
        if kind == (wanted.get("type") or "model"):
            return kind
    raise Refusal(400, f'"type" must be one of [{", ".join(KINDS)}]')


def _name(hub: HubContext, call: Call, wanted: dict[str, Any]) -> str:
    """The full name of the repo that a body names; without an organization it is the user's."""
    account = hub.account(call)
    owner = wanted.get("organization") or (account.user if account else "")
    return f"{owner}/{wanted.get('name')}"


def _wants_private(wanted: dict[str, Any]) -> bool:
    return wanted.get("visibility") == "private" or bool(wanted.get("private"))
