"""The HTTP client under huggingface_hub's, with bounds on what a server may do to it.

The client's own timeouts bound the wait for the next byte, not for the answer: a server that drips holds it
for hours, and it sleeps as long as a server asks. Here the pace of every connection is bounded, and so are
the size of an answer, the pages of a listing and the wait that a server may ask for. The token goes to
HF_ENDPOINT alone, and a read ends within a moment once nobody waits for it (``stoppable``).
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from threading import Event

LEAST_PACE = 1024
"""Bytes a second that a connection has to carry, measured over ``WINDOW``."""
WINDOW = 30.0
"""Seconds."""
LONGEST_WAIT = 300
"""Seconds that a server may have the client wait; the Hub's rate limits reset within these."""
ANSWER_LIMIT = 64_000_000
"""Bytes of an answer that is read whole: of the Hub's API, never a file."""
MOST_PAGES = 2_000
"""Of one listing; the Hub puts up to 1,000 entries on a page."""

_SLICE = 0.25
_PIECE = 1 << 16
_TIMEOUT = 120.0
"""Seconds for one read or write, where the caller sets none."""
_LOCAL = threading.local()
_PREPARED = threading.Lock()


class BeyondBounds(Exception):
    """What a server did is out of all bounds, and asking again will not help."""


class TooLongAWait(BeyondBounds):
    """A server asks for a wait of more than ``LONGEST_WAIT``."""

    def __init__(self, said: str, seconds: float) -> None:
        super().__init__(said)
        self.seconds = seconds


@contextmanager
def stoppable(stop: Event) -> Iterator[None]:
    """In this thread, have reads from the network fail soon after ``stop`` is set."""
    _LOCAL.stop = stop
    try:
        yield
    finally:
        _LOCAL.stop = None


@contextmanager
def token_kept() -> Iterator[None]:
    """In this thread, let no request take a token to another origin than HF_ENDPOINT.

    Other users of the client in the same process may have hubs of their own, and tokens for them.
    """
    outer = getattr(_LOCAL, "token_kept", False)
    _LOCAL.token_kept = True
    try:
        yield
    finally:
        _LOCAL.token_kept = outer


def use_bounded_client() -> None:
    """Have huggingface_hub make its connections through a client with bounds, from its next one on.

    A client factory that the program has set itself stays.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with _PREPARED:
        if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:
            set_client_factory(_bounded_client)


def _bounded_client() -> Any:
    """As huggingface_hub's own factory makes it, but bounded."""
    from huggingface_hub.utils._http import hf_request_event_hook

    http, core = http_libraries()

    class Bounded(http.Client):  # type: ignore[misc, name-defined]
        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            _keep_token(request)
            _LOCAL.awaits_head = True
            try:
                response = super().send(request, stream=True, **options)
            finally:
                _LOCAL.awaits_head = False
            try:
                _check_names(response)
                _check_wait(response)
                if not stream:
                    _read_whole(response)
                    _count_pages(response)
            except BaseException:
                response.close()
                raise
            return response

    client = Bounded(
        event_hooks={"request": [hf_request_event_hook]},
        follow_redirects=True,
        timeout=_TIMEOUT,
        # What comes packed may be a thousand times its size once unpacked.
        headers={"Accept-Encoding": "identity"},
    )
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:
            transport._pool._network_backend = _backend(core)
    return client


def http_libraries() -> tuple[Any, Any]:
    """The HTTP library under huggingface_hub, httpx2 from 2.0 on and httpx before, and its core."""
    try:
        import httpcore2
        import httpx2

        return httpx2, httpcore2
    except ImportError:  # huggingface_hub 1.x
        import httpcore
        import httpx

        return httpx, httpcore


def _backend(core: Any) -> Any:
    class Paced(core.NetworkStream):  # type: ignore[misc]
        """A connection whose pace is watched, from the first byte of an answer to its last."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream
            self._since: float | None = None
            self._began = 0.0
            self._carried = 0
            self._writing = False

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            end = time.monotonic() + (_TIMEOUT if timeout is None else timeout)
            while True:
                stop = getattr(_LOCAL, "stop", None)
                if stop is not None and stop.is_set():
                    raise core.ReadError("nobody waits for it any more")
                left = end - time.monotonic()
                try:  # by slices also because huggingface_hub closes the client while others read
                    data: bytes = self._stream.read(max_bytes, max(0.01, min(left, _SLICE)))
                except core.ReadTimeout:
                    if time.monotonic() >= end:
                        raise
                    continue
                self._account(len(data), writing=False)
                return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            for start in range(0, len(buffer), _PIECE):
                self._stream.write(buffer[start : start + _PIECE], _TIMEOUT if timeout is None else timeout)
                self._account(min(_PIECE, len(buffer) - start), writing=True)

        def _account(self, size: int, *, writing: bool) -> None:
            now = time.monotonic()
            if self._since is None or writing is not self._writing:  # the time to think does not count
                self._since, self._carried, self._writing = now, 0, writing
                self._began = now
                return
            if not writing and now - self._began > WINDOW and getattr(_LOCAL, "awaits_head", False):
                raise BeyondBounds(
                    f"the server did not finish the head of its answer in {WINDOW:.0f} s; check HF_ENDPOINT"
                )
            self._carried += size
            elapsed = now - self._since
            if elapsed < WINDOW:
                return
            if size and self._carried < LEAST_PACE * elapsed:
                kind = core.WriteTimeout if writing else core.ReadTimeout
                raise kind(f"only {self._carried:,} bytes arrived in {elapsed:.0f} s")
            self._since, self._carried = now, 0

        def close(self) -> None:
            self._stream.close()

        def start_tls(self, *given: Any, **options: Any) -> Any:
            return Paced(self._stream.start_tls(*given, **options))

        def get_extra_info(self, info: str) -> Any:
            return self._stream.get_extra_info(info)

    class Backend(core.SyncBackend):  # type: ignore[misc]
        def connect_tcp(self, *given: Any, **options: Any) -> Any:
            return Paced(super().connect_tcp(*given, **options))

    return Backend()


def _keep_token(request: Any) -> None:
    """Take the token off a request to another origin: a listing's next page may be anywhere."""
    from huggingface_hub import constants

    if not getattr(_LOCAL, "token_kept", False):
        return
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or origin(str(request.url)) == origin(constants.ENDPOINT):
        return
    if value != os.environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN"):  # the CI's own, for the CI's own server
        del request.headers["Authorization"]


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what has to be equal for a token to go along."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds a response asks for: RateLimit if used up, Retry-After (seconds or date), RateLimit-Reset."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    try:
        limit = parse_ratelimit_headers(headers)
    except ValueError:  # numbers of thousands of digits
        limit = None
    if limit is not None and limit.remaining == 0:
        return float(min(limit.reset_in_seconds, 10**9))
    lower = {key.lower(): value.strip() for key, value in headers.items()}
    for header in ("retry-after", "ratelimit-reset"):
        value = lower.get(header, "")
        if value.isascii() and value.isdigit():
            return float(value)
        if value:
            from email.utils import parsedate_to_datetime  # milliseconds, for a header that hardly ever comes

            try:
                moment = parsedate_to_datetime(value)
            except (ValueError, OverflowError):  # a year or a zone that no clock has
                continue
            if moment.tzinfo is None:  # "-0000": UTC without a known zone
                moment = moment.replace(tzinfo=timezone.utc)
            return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    return None


def _check_names(response: Any) -> None:
    """The client names files of its cache after these: none may lead out of it."""
    for header in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
        name = response.headers.get(header, "").removeprefix("W/").strip('"')
        if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
            raise BeyondBounds(f"{response.url.host} sent an {header} that is a path; check HF_ENDPOINT")


def _check_wait(response: Any) -> None:
    """The client sleeps as long as it is told to before it tries again: not beyond ``LONGEST_WAIT``."""
    asked = asked_wait(response.headers) if response.status_code in (429, 500, 502, 503, 504) else None
    if asked is not None and asked > LONGEST_WAIT:
        raise TooLongAWait(
            f"{response.url.host} answered {response.status_code}; the server asked to wait {asked:.0f} s; "
            "run the same command again after that",
            asked,
        )


def _read_whole(response: Any) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BeyondBounds(
            f"{response.url.host} sent an answer packed as {encoding[:40]!r}, but hubextrap asked for plain "
            "bytes; check HF_ENDPOINT and the proxy"
        )
    response.stream = _counted(response.stream, response.url.host)
    response.read()


def _counted(stream: Any, host: str) -> Any:
    http, _ = http_libraries()

    class Counted(http.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            received = 0
            for chunk in stream:
                received += len(chunk)
                if received > ANSWER_LIMIT:
                    raise BeyondBounds(
                        f"{host} sent an answer of more than {ANSWER_LIMIT:,} bytes; check HF_ENDPOINT"
                    )
                yield chunk

        def close(self) -> None:
            stream.close()

    return Counted()


def _count_pages(response: Any) -> None:
    """Refuse pages that follow one another without end; a thread lists one thing at a time."""
    next_page = response.links.get("next", {}).get("url")
    if not next_page:
        _LOCAL.pages = _LOCAL.size = 0
        return
    _LOCAL.pages = getattr(_LOCAL, "pages", 0) + 1
    _LOCAL.size = getattr(_LOCAL, "size", 0) + len(response.content)
    if _LOCAL.pages > MOST_PAGES or _LOCAL.size > 4 * ANSWER_LIMIT or next_page == str(response.url):
        _LOCAL.pages = _LOCAL.size = 0
        raise BeyondBounds(
            f"{response.url.host} lists page after page without end; check HF_ENDPOINT and the repo's name"
        )
