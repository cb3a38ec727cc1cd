"""Which requests are answered at all: those to one of its names, from no other web page, by a clear path.

A page in a browser of this machine can send requests to a loopback port. It can make its own name resolve to
127.0.0.1 and then read the answers, so a Host that is not ours is refused; and a browser says where a request
comes from, so one that another page has sent is refused too. No answer carries a CORS header.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from email.message import Message
from urllib.parse import parse_qs, unquote_to_bytes

from hubextrap.localhub.refusal import Refusal

_FIELDS_MAX = 10_000


def own_hosts(host: str, address: str, port: int) -> frozenset[str]:
    """Each Host header that stands for this server.

    Args:
        host: what it was told to listen on.
        address: where this connection has arrived, the only way to know one's name when listening everywhere.
        port: its port.
    """
    names = {"localhost", "127.0.0.1", "[::1]", host, address}
    with suppress(ValueError):  # it is a name
        if ipaddress.ip_address(host or "0.0.0.0").is_unspecified:
            names.add(socket.gethostname())
    hosts = {f"[{name}]" if ":" in name.strip("[]") and name[0] != "[" else name.lower() for name in names}
    return frozenset({f"{name}:{port}" for name in hosts} | (hosts if port == 80 else set()))


def check_sender(headers: Message, hosts: frozenset[str]) -> None:
    """Refuse a request that is for another host, or that another host's page has sent.

    Raises:
        Refusal: 400 without a Host, 421 for another one, 403 from another page.
    """
    host = headers.get("Host")
    if not host:
        raise Refusal(400, "a request needs a Host header")
    if host.lower() not in hosts:
        raise Refusal(421, "this hub has no such name; use the address that `hubextrap hub serve` printed")
    own = f"http://{host.lower()}"
    site = headers.get("Sec-Fetch-Site", "none")
    if headers.get("Origin", own).lower() != own or site not in ("none", "same-origin"):
        raise Refusal(403, "this hub takes no requests from other web pages")


def check_path(path: str) -> None:
    """Refuse (400) a path that a second reader could take for another one."""
    first, *parts = [_decoded(part) for part in path.split("/")]
    if first or {".", ".."} & set(parts):
        raise Refusal(400, "the path holds . or .., or does not start with /")


def read_query(query: str) -> dict[str, list[str]]:
    """The fields of a query, or of a form. Raises Refusal (400) where it cannot be read."""
    _decoded(query)
    try:
        return parse_qs(query, errors="strict", max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise Refusal(400, f"the query cannot be read: {error}") from error


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise Refusal(400, "a % without two digits")
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal(400, "the path is not UTF-8") from None
    if re.search(r"[\x00-\x1f\x7f-\x9f]", decoded):
        raise Refusal(400, "the path holds a control character")
    return decoded
