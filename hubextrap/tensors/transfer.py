"""One range request, checked to the last byte."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hubextrap.hub_client import asked_wait
from hubextrap.patience import is_passing_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

TIMEOUTS = (10.0, 30.0, 30.0, None)
"""Seconds to connect, between two reads, between two writes; no bound on waiting for a pooled connection."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the bytes of one file lie."""

    url: Any = field(repr=False)
    """As the HTTP library has it once parsed, as that takes a tenth of a small request. May be signed: never
    shown."""
    headers: Mapping[str, str] = field(repr=False)
    """Hold the token if and only if ``at_hub``."""
    at_hub: bool
    """Whether the Hub serves the bytes itself, without a redirect."""
    size: int
    """Bytes of the whole file."""
    xet_hash: str | None = None
    """The Xet hash of the content, where the address may lead to another one tomorrow."""


@dataclass(slots=True)
class Part:
    """A stretch of a file on its way into memory."""

    offset: int
    """Of the first byte in the file."""
    buffer: memoryview
    stop: Event
    """Set when nobody waits for it any more."""
    received: int = 0
    """Bytes at the front of ``buffer`` that are there."""

    @property
    def rest(self) -> int:
        return len(self.buffer) - self.received


class Refused(ConnectionError):
    """The server answered, but not with these bytes; asking again may help, now or at another time."""

    def __init__(self, cause: str, *, stale: bool = False, asked_wait: float | None = None) -> None:
        super().__init__(cause)
        self.stale = stale
        """The address itself was refused: resolve it again."""
        self.asked_wait = asked_wait
        """Seconds that the server asked to wait."""


def fetch(target: Target, part: Part) -> None:
    """Ask once for what is missing of ``part``; ``part.received`` grows by what comes, also when this raises.

    Raises:
        Refused: an answer other than exactly these bytes.
        Exception: of the HTTP library, when the connection fails.
    """
    from huggingface_hub import get_session

    first, stop = part.offset + part.received, part.offset + len(part.buffer)
    headers = {**target.headers, "Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
    # With the token no redirect is followed; without it there is nothing to lose.
    with get_session().stream(
        "GET", target.url, headers=headers, timeout=TIMEOUTS, follow_redirects=not target.at_hub
    ) as response:
        if target.xet_hash is not None:
            _check_hash(response, target.xet_hash)
        if response.status_code == 200 and part.offset == 0 and stop == target.size:
            part.received = 0  # the whole file was asked for, and a server may answer that with 200
            first = 0
        else:
            _check_status(response)
            _check_range(response, first, stop, target.size)
        _check_length(response, stop - first)
        for chunk in response.iter_raw():
            if part.stop.is_set():
                return
            if len(chunk) > part.rest:
                raise Refused("the server sent more bytes than it announced")
            part.buffer[part.received : part.received + len(chunk)] = chunk
            part.received += len(chunk)
    if part.rest:
        raise Refused(f"the connection ended {part.rest:,} bytes early")


def _check_hash(response: Any, expected: str) -> None:
    """What the Hub itself serves says which content it is; what it redirects to is of just one."""
    found = response.headers.get("X-Xet-Hash", expected)
    if found != expected and response.status_code < 400:
        raise Refused(f"content {expected} was asked for, the server sent {found}", stale=True)


def _check_status(response: Any) -> None:
    status = response.status_code
    if status == 206:
        return
    if is_passing_status(status):
        raise Refused(f"the server answered {status}", asked_wait=asked_wait(response.headers))
    if status == 200:
        raise Refused(
            "the server ignored the Range header (status 200); --cache of merge or scan reads whole files"
        )
    raise Refused(f"the server answered {status}", stale=True)


def _check_range(response: Any, first: int, stop: int, size: int) -> None:
    given = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", given.strip(), re.ASCII)
    if not match or (int(match[1]), int(match[2])) != (first, stop - 1) or match[3] not in (str(size), "*"):
        raise Refused(f"bytes {first}-{stop - 1}/{size} were asked for, the server sent {given!r}")


def _check_length(response: Any, expected: int) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and length != str(expected):
        raise Refused(f"{expected} bytes were asked for, the server announced {length!r}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        raise Refused(f"the server sent {encoding!r} though plain bytes were asked for")
