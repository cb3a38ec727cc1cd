"""Who may do what, and how the Hub says no: status, X-Error-Code and message."""

from __future__ import annotations

import base64
import hmac
import math
import time
from dataclasses import dataclass
from email.message import Message

from hubextrap.localhub.repository import HubRepo
from hubextrap.localhub.wire import Refusal


@dataclass(frozen=True)
class Account:
    """The user behind a token; a read-only token may not change anything."""

    user: str
    read_only: bool = False
    repo: str | None = None
    """The only repo that it may write to or that hidden files are shown of, for a trusted CI job's token."""
    until: float = math.inf
    """When it is no longer good, as time.time() has it."""


def same(given: str, secret: str) -> bool:
    """Whether both are the same, found out in a time that does not tell how far they agree."""
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode(errors="replace"))


def account_of(headers: Message, tokens: dict[str, Account]) -> Account | None:
    """The account whose token the request carries; None without one. Raises Refusal for an unknown token."""
    authorization = headers.get("Authorization")
    if not authorization:
        return None
    given, now = _token(authorization), time.time()
    # All are compared, so that the time does not depend on which one fits.
    found = [account for token, account in list(tokens.items()) if same(given, token) and now < account.until]
    if not found:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return found[0]


def _token(authorization: str) -> str:
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return authorization.removeprefix("Bearer ").strip()
    try:  # git: the token is the password
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def no_such_repo(account: Account | None) -> Refusal:
    """What a missing repo and a hidden one look like: the same, so that nobody learns of hidden ones."""
    if account is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def may_see(repo: HubRepo, account: Account | None) -> bool:
    """Whether the repo exists as far as this account is concerned."""
    return not repo.settings.private or _has_part(repo, account)


def check_content(repo: HubRepo, account: Account | None) -> None:
    """Refuse the files of a gated repo to who has not been granted access; its listings are open to all.

    Raises:
        Refusal: 401 for anonymous requests, 403 for users.
    """
    if not repo.settings.gated or _has_part(repo, account):
        return
    if account is None:
        status, why = 401, ". You must have access to it and be authenticated to access it. Please log in."
    else:
        status, why = 403, " and you are not in the authorized list. Visit its page to ask for access."
    named = f"{repo.settings.kind} {repo.settings.name}"
    raise Refusal(status, f"Access to {named} is restricted{why}", "GatedRepo")


def check_writer(name: str, account: Account | None, repo: HubRepo | None = None) -> str:
    """The user's name, if the account may write to repos called ``name`` (and to this one, if it exists).

    Raises:
        Refusal: 401 for anonymous requests, 403 for others.
    """
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    if account.read_only:
        raise Refusal(403, "Forbidden: this token is read-only; a token with the role write is needed")
    if account.repo is not None and account.repo != name:
        raise Refusal(403, f"Forbidden: this token is for {account.repo} only")
    granted = repo is not None and repo.settings.grants.get(account.user) == "write"
    if not granted and name.partition("/")[0] != account.user:
        raise Refusal(403, f"Forbidden: {account.user} has no rights to write to {name}")
    return account.user


def _has_part(repo: HubRepo, account: Account | None) -> bool:
    owner = repo.settings.name.partition("/")[0]
    if account is not None and account.repo is not None:
        return account.repo == repo.settings.name
    return account is not None and (account.user == owner or account.user in repo.settings.grants)
