"""Xet tokens: which local store a client may write to or read from."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from hubextrap.localhub.access import check_content
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer

_TOKEN_SECONDS = 3600


def write_token(hub: HubContext, call: Call) -> Answer:
    """GET …/xet-write-token/V: an empty store for any user, as pull requests are open to all."""
    _check_offered(hub)
    repo = hub.repo(call)
    hub.reader(call)
    return token_for(repo.xet.new_store())


def read_token(hub: HubContext, call: Call) -> Answer:
    """GET …/xet-read-token/V: a copy of a store with the files of the commit."""
    _check_offered(hub)
    repo = hub.repo(call)
    check_content(repo, hub.account(call))
    entries = repo.entries(repo.head(call.groups["revision"]), recursive=True)
    pointers = [entry.lfs for entry in entries if entry.lfs]
    try:
        with hub.store.lock:  # a store may have to be made of several
            return token_for(repo.xet.copy_of(repo.xet.store_of(pointers, repo.objects)))
    except KeyError:
        raise Refusal(404, f"no file of {call.groups['revision']} came by Xet") from None


def _check_offered(hub: HubContext) -> None:
    if not hub.xet:
        raise Refusal(404, "this hub does not offer Xet; set HF_HUB_DISABLE_XET=1")


def token_for(store: Path) -> Answer:
    """The answer to who asks for a token: where the store lies is all that a client here needs."""
    token, expires = secrets.token_hex(16), int(time.time()) + _TOKEN_SECONDS
    url = f"local://{store.resolve()}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return json_answer({"accessToken": token, "exp": expires, "casUrl": url}, headers=headers)
