"""HTTP as the hub speaks it: calls, answers, refusals, and a threaded server that logs and injects faults."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.admission import check_path, check_sender, own_hosts, read_query
from hubextrap.localhub.faults import Fault, Faults, Request
from hubextrap.localhub.inbound import IDLE_SECONDS, Body, Inbound, read_head
from hubextrap.localhub.lfs import regular_size
from hubextrap.localhub.refusal import Refusal as Refusal

_LOG_MAX = 100_000  # requests; a hub may serve for weeks
_LOG_BYTES = 1 << 25
_JSON_MAX = 100_000_000  # bytes; the content of a file of a commit is in its line
_CONNECTIONS_MAX = 256
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_MESSAGE_MAX = 1_000  # characters in a header; a client's own words may come back in it
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer: no browser shows what lies in a repo as a page, or lets another page read it."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it; git and files cannot hold one
_Item = TypeVar("_Item", str, dict[str, Any])


@dataclass
class Answer:
    """Status, headers and body of a response, served by range too if ``ranges`` is set."""

    status: int = 200
    body: bytes | Path = b""
    """Or the file that holds it: one that the hub wrote."""
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer whose body is ``value`` as JSON."""
    body = json.dumps(value).encode()
    return Answer(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def tagged(answer: Answer, asked: Message) -> Answer:
    """The answer with a weak ETag of its body, as Express gives one (npm's etag: length and its SHA-1);
    a 304 without a body where the request names that tag (npm's fresh)."""
    assert isinstance(answer.body, bytes)
    digest = base64.b64encode(hashlib.sha1(answer.body, usedforsecurity=False).digest()).decode()[:27]
    tag = f'"{len(answer.body):x}-{digest}"'
    headers = {**answer.headers, "ETag": f"W/{tag}"}
    known = {one.strip().removeprefix("W/") for one in asked.get("If-None-Match", "").split(",")}
    if known & {tag, "*"} and "no-cache" not in asked.get("Cache-Control", ""):
        return Answer(304, b"", headers)
    return Answer(answer.status, answer.body, headers)


def linked_pages(
    call: Call,
    base: str,
    items: list[Any],
    default_limit: int,
    shown: Callable[[list[Any]], list[Any]] = list,
) -> Answer:
    """One page of ``items``: ``limit`` of them from ``cursor`` on, and a link to the next page.

    Args:
        shown: what is said of a page's items, found out for no others.
    """
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
    return json_answer(shown(items[cursor : cursor + limit]), headers=headers)


def refusal_answer(refusal: Refusal) -> Answer:
    """The answer to a refused request: the message in the body and in the headers that the client reads."""
    headers = {"X-Error-Message": refusal.message[:_MESSAGE_MAX], **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return json_answer({"error": refusal.message, **refusal.body}, refusal.status, headers)


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``. Raises Refusal where it is something else."""
    try:
        value = parse_json(text, "the body", error=ValueError, remedy="correct it", limit=_JSON_MAX)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    if not isinstance(value, dict):
        raise Refusal(400, "the body is not a JSON object")
    if _NUL.search(text):
        raise Refusal(400, "the body holds a NUL")
    return value


def list_in(value: dict[str, Any], name: str, most: int, kind: type[_Item]) -> list[_Item]:
    """The list of strings or objects (``dict``) called ``name`` in a body; empty where there is none.

    Raises Refusal where it is something else, or longer than ``most``.
    """
    found = value.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise Refusal(400, f'"{name}" must be a list of {"strings" if kind is str else "objects"}')
    if len(found) > most:
        raise Refusal(413, f'"{name}" has more than {most} entries')
    return found


@dataclass
class Call:
    """One request: the raw path without query, the query, the groups that the route matched (unquoted)."""

    method: str
    path: str
    link: str
    query: dict[str, list[str]]
    headers: Message
    body: Body
    groups: dict[str, str] = field(default_factory=dict)
    repo_span: tuple[int, int] = (0, 0)
    """Where the repo's name stands in ``link``."""

    def flag(self, name: str) -> bool:
        """Whether the query switches ``name`` on."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def for_repo(self, name: str) -> str:
        """``link`` with another repo's name in its place: relative, so that clients follow with the token."""
        start, end = self.repo_span
        return f"{self.link[:start]}{quote(name)}{self.link[end:]}"

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Refusal where it is something else."""
        return json_object(self.body.read() or b"{}")


class Server(ThreadingHTTPServer):
    """Serves ``respond`` on a loopback port, with one thread per connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, respond: Callable[[Call], Answer], faults: Faults, log: list[Request]
    ) -> None:
        super().__init__((host, port), _Handler)
        self.host = host
        self.respond = respond
        self.faults = faults
        self.log = log
        self.log_bytes = 0
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the server listens."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Serve in the background."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and close every connection."""
        if self._thread:
            self.shutdown()
            self._thread.join()
        self.server_close()
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            time.sleep(0.005)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            full = len(self._open) >= _CONNECTIONS_MAX
            if not full:
                self._open.add(request)
        if full:
            with suppress(OSError):
                request.settimeout(1)
                request.sendall(_FULL)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            super().finish_request(request, client_address)
        except (ConnectionError, TimeoutError):
            pass  # the client went away
        finally:
            with self._open_lock:
                self._open.discard(request)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    rfile: io.BufferedReader
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self._inbound = Inbound(self.connection)
        self.rfile = io.BufferedReader(self._inbound, 1 << 16)

    def handle_one_request(self) -> None:
        """Answer one request; ``close_connection`` says whether there may be another one."""
        self.close_connection = True
        self._cut = False
        self.command, self.path, self.request_version = "GET", "", "HTTP/1.1"
        self.headers = Message()
        try:
            head = read_head(self.rfile, self._inbound)
            if head is None:
                return
            self.command, self.path, self.headers = head.method, head.target, head.headers
            self.server.log_bytes += head.size
            body = Body(self.rfile, head.headers, self.wfile)
            self._serve(body)
            self.close_connection = self._cut or not (head.keep_alive and body.drain())
        except Refusal as refusal:  # where the next request begins is not known
            self._send(refusal_answer(refusal), Fault("", headers={"Connection": "close"}))

    def _serve(self, body: Body) -> None:
        fault = self.server.faults.strike(self.command, self.path) or Fault("")
        time.sleep(fault.delay)
        if fault.until is not None:
            fault.until.wait(60)
        if fault.cut_upload is not None:
            self.rfile.read(min(fault.cut_upload, int(self.headers.get("Content-Length", "0"))))
            fault = Fault("", drop=True)
        spoiled = fault.drop or fault.status is not None
        answer = None
        if not spoiled or fault.after:
            answer = self._respond(body)
        elif not fault.drop:
            body.drain()
        if fault.drop:
            self._log(0)
            self._cut = True
            return
        if fault.status is not None:
            answer = json_answer({"error": "injected fault"}, fault.status)
        assert answer is not None
        self._send(answer, fault)

    def _respond(self, body: Body) -> Answer:
        try:
            address, port = self.connection.getsockname()[:2]
            check_sender(self.headers, own_hosts(self.server.host, str(address), int(port)))
            if self.command not in _METHODS:
                raise Refusal(405, f"this hub knows {', '.join(_METHODS)}")
            path, _, query = self.path.partition("?")
            check_path(path)
            call = Call(self.command, path, self.path, read_query(query), self.headers, body)
            return self.server.respond(call)
        except Refusal as refusal:
            return refusal_answer(refusal)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return refusal_answer(Refusal(507, "the hub's disk is full"))
            traceback.print_exc()  # a bug of the hub
            return refusal_answer(Refusal(500, "the local hub failed; its terminal shows where"))

    def _send(self, answer: Answer, fault: Fault) -> None:
        body = answer.body
        size = regular_size(body) if isinstance(body, Path) else len(body)
        if size is None:
            self._send(refusal_answer(Refusal(404, "Object does not exist", "EntryNotFound")), fault)
            return
        start, end, status, headers = 0, size, answer.status, dict(answer.headers)
        if answer.ranges and status == 200:
            headers["Accept-Ranges"] = "bytes"
            requested = None if fault.ignore_range else self.headers.get("Range")
            wanted = parse_range(requested, size)
            if wanted is not None and fault.shift_range:
                wanted = (wanted[0] + fault.shift_range, min(wanted[1] + fault.shift_range, size))
            if wanted is not None and wanted[0] >= wanted[1]:
                refused = refusal_answer(Refusal(416, f"no such range of {size} bytes: {requested}"))
                refused.headers["Content-Range"] = f"bytes */{size}"
                self._send(refused, Fault(""))
                return
            if wanted is not None:
                start, end = wanted
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers = {"Content-Type": "application/octet-stream", **headers, **_ALWAYS}
        headers["Content-Length"] = str(end - start)
        if status == 304:  # they would be about the body that is not sent
            del headers["Content-Length"], headers["Content-Type"]
        headers["X-Request-Id"] = self._request_id()
        replaced = {name.lower() for name in fault.headers}
        headers = {name: value for name, value in headers.items() if name.lower() not in replaced}
        headers.update(fault.headers)
        self._log(status)
        self.connection.settimeout(IDLE_SECONDS)  # for each piece that the client takes
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, re.sub(r"[^\x20-\x7e]", "?", value))
        self.end_headers()
        if fault.truncate is not None:
            end = min(end, start + fault.truncate)
            self._cut = True
        if self.command != "HEAD":
            self._send_body(body, start, end)
        self.wfile.flush()

    def _request_id(self) -> str:
        """What the client calls its request, or a name for it."""
        given = self.headers.get("X-Request-Id") or self.headers.get("X-Amzn-Trace-Id") or ""
        return given if re.fullmatch(r"[\w.:;=-]{1,200}", given, re.ASCII) else uuid.uuid4().hex

    def _send_body(self, body: bytes | Path, start: int, end: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[start:end])
            return
        self.wfile.flush()
        # One that the hub wrote: regular, and no link to somewhere else.
        descriptor = os.open(body, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if start < end and self.connection.sendfile(file, start, end - start) < end - start:
                raise ConnectionAbortedError("the file became shorter while it was sent")

    def _log(self, status: int) -> None:
        log, port = self.server.log, self.server.server_address[1]
        if len(log) >= _LOG_MAX or self.server.log_bytes > _LOG_BYTES:
            del log[: len(log) // 2 + 1]
            self.server.log_bytes //= 2
        log.append(Request(self.command, self.path, self.headers, status, port))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return None


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open byte range that a Range header asks for, cut to ``size``; None where it asks for all.

    An empty range (start >= end) cannot be satisfied. Several ranges at once are treated as none.
    """
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header[len("bytes=") :].strip().partition("-")
    if not dash or not re.fullmatch(r"[0-9]{1,36}", first + last):
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
