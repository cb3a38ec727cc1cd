"""Trusted Publishers: a CI job's identity for a token that opens one repo for an hour (RFC 8693)."""

from __future__ import annotations

import secrets
import time

from hubextrap.localhub.access import Account, same
from hubextrap.localhub.context import HubContext
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer

_SECONDS = 3600
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


def exchange(hub: HubContext, call: Call) -> Answer:
    """POST /oauth/token."""
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
    hub.tokens[token] = Account(repo.partition("/")[0], repo=repo, until=now + _SECONDS)
    return json_answer({"access_token": token, "token_type": "bearer", "expires_in": _SECONDS})
