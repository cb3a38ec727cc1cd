"""Trusted Publishers: a CI job's identity for a token that opens one repo for an hour (RFC 8693)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from hubextrap.localhub.access import Account
from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer

if TYPE_CHECKING:
    from hubextrap.localhub.hub import LocalHub

_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


def exchange(hub: LocalHub, call: Call) -> Answer:
    """POST /oauth/token."""
    wanted = call.json()
    if (wanted.get("grant_type"), wanted.get("subject_token_type")) != (_GRANT, _ID_TOKEN):
        raise Refusal(400, "invalid_request")
    repo = str(wanted.get("resource", ""))
    if (repo, wanted.get("subject_token")) not in hub.trusted:
        raise Refusal(400, "invalid_grant")
    token = f"hf_jwt_{secrets.token_urlsafe(24)}"
    hub.tokens[token] = Account(repo.partition("/")[0], repo=repo)
    return json_answer({"access_token": token, "token_type": "bearer", "expires_in": 3600})
