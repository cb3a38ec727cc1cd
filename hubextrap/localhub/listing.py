"""Lists that come in pages, linked by the Link header."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from hubextrap.localhub.wire import Answer, Call, Refusal, json_answer


def linked_pages(call: Call, base: str, items: list[Any], default_limit: int) -> Answer:
    """One page of ``items``: ``limit`` of them from ``cursor`` on, and a link to the next page."""
    try:
        limit = int(call.query.get("limit", [str(default_limit)])[0])
        cursor = int(call.query.get("cursor", ["0"])[0])
    except ValueError:
        raise Refusal(400, "limit and cursor are numbers") from None
    limit, cursor = max(1, min(limit, default_limit)), max(0, cursor)
    headers = {}
    if cursor + limit < len(items):
        query = urlencode({**call.query, "cursor": [cursor + limit], "limit": [limit]}, doseq=True)
        headers["Link"] = f'<{base}{call.path}?{query}>; rel="next"'
    return json_answer(items[cursor : cursor + limit], headers=headers)
