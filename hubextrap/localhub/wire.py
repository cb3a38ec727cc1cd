"""HTTP as the hub speaks it: calls, answers, refusals, and a threaded server that logs and injects faults."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from hubextrap.foreign_data import parse_json
from hubextrap.localhub.faults import Fault, Faults, Request

_CHUNK = 1 << 20
_LOG_MAX = 100_000  # requests; a hub may serve for weeks
_KEEP_ALIVE_SECONDS = (
    90  # longer than clients keep idle connections pooled, so that they never meet a closed one
)


class Refusal(Exception):
    """A request that is answered with an error; ``code`` decides which exception the client raises."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class FileBody:
    """A body that is a whole file on disk; ranges of it are served on request."""

    path: Path


@dataclass
class Answer:
    """Status, headers and body of a response. A body of bytes is served by range too if ``ranges`` is set."""

    status: int = 200
    body: bytes | FileBody = b""
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer whose body is ``value`` as JSON."""
    body = json.dumps(value).encode()
    return Answer(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def refusal_answer(refusal: Refusal) -> Answer:
    """The answer to a refused request: the message in the body and in the headers that the client reads."""
    message = re.sub(r"[^\x20-\x7e]", "?", refusal.message)
    headers = {"X-Error-Message": message, **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return json_answer({"error": refusal.message, **refusal.body}, refusal.status, headers)


class Body:
    """The body of a request, plain or chunked, read as a stream."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._file = handler.rfile
        self._chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        length = handler.headers.get("Content-Length", "0")
        if not length.isdigit():
            raise ConnectionAbortedError(f"not a length: {length}")
        self._left = 0 if self._chunked else int(length)

    def chunks(self) -> Iterator[bytes]:
        """What is left of the body.

        Raises:
            ConnectionError: the client went away in the middle.
        """
        while self._left or (self._chunked and self._next_chunk()):
            chunk = self._file.read(min(self._left, _CHUNK))
            if not chunk:
                raise ConnectionResetError("the client closed the connection in the middle of a body")
            self._left -= len(chunk)
            yield chunk

    def read(self) -> bytes:
        """All that is left of the body."""
        return b"".join(self.chunks())

    def drain(self) -> None:
        """Read the rest and forget it, so that the connection can carry the next request."""
        for _ in self.chunks():
            pass

    def _next_chunk(self) -> bool:
        line = self._file.readline(1024).strip() or self._file.readline(1024).strip()
        try:
            self._left = int(line.split(b";")[0], 16)
        except ValueError:
            raise ConnectionAbortedError("the client sent a chunk without its length") from None
        if self._left == 0:
            self._file.readline(1024)
            self._chunked = False
        return self._left > 0


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
        """The body as a JSON object.

        Raises:
            Refusal: it is something else.
        """
        try:
            value = parse_json(self.body.read() or b"{}", "the body", error=ValueError, remedy="correct it")
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        if not isinstance(value, dict):
            raise Refusal(400, "the body is not a JSON object")
        return value


Responder = Callable[[Call], Answer]


class Server(ThreadingHTTPServer):
    """Serves ``respond`` on a loopback port, a thread a connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, respond: Responder, faults: Faults, log: list[Request]) -> None:
        super().__init__((host, port), _Handler)
        self.respond = respond
        self.faults = faults
        self.log = log
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

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        try:
            super().finish_request(request, client_address)
        except (ConnectionError, TimeoutError):
            pass  # the client went away
        finally:
            with self._open_lock:
                self._open.discard(request)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _KEEP_ALIVE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        fault = self.server.faults.strike(self.command, self.path) or Fault("")
        time.sleep(fault.delay)
        if fault.cut_upload is not None:
            self.rfile.read(min(fault.cut_upload, int(self.headers.get("Content-Length", "0"))))
            fault = Fault("", drop=True)
        spoiled = fault.drop or fault.status is not None
        answer = None
        if not spoiled or fault.after:
            answer = self._respond()
        elif not fault.drop:
            Body(self).drain()
        if fault.drop:
            self._log(0)
            self.close_connection = True
            return
        if fault.status is not None:
            answer = json_answer({"error": "injected fault"}, fault.status)
        assert answer is not None
        self._send(answer, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _respond(self) -> Answer:
        path, _, query = self.path.partition("?")
        body = Body(self)
        call = Call(self.command, path, self.path, parse_qs(query), self.headers, body)
        try:
            return self.server.respond(call)
        except Refusal as refusal:
            return refusal_answer(refusal)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            return _server_error()
        finally:
            body.drain()

    def _send(self, answer: Answer, fault: Fault) -> None:
        size = answer.body.path.stat().st_size if isinstance(answer.body, FileBody) else len(answer.body)
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
        headers["Content-Length"] = str(end - start)
        headers["X-Request-Id"] = self._request_id()
        replaced = {name.lower() for name in fault.headers}
        headers = {name: value for name, value in headers.items() if name.lower() not in replaced}
        headers.update(fault.headers)
        self._log(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault.truncate is not None:
            end = min(end, start + fault.truncate)
            self.close_connection = True
        if self.command != "HEAD":
            self._send_body(answer.body, start, end)
        self.wfile.flush()

    def _request_id(self) -> str:
        """What the client calls its request, or a name for it."""
        given = self.headers.get("X-Request-Id") or self.headers.get("X-Amzn-Trace-Id") or ""
        return given if re.fullmatch(r"[\w.:;=-]{1,200}", given, re.ASCII) else uuid.uuid4().hex

    def _send_body(self, body: bytes | FileBody, start: int, end: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[start:end])
            return
        self.wfile.flush()
        with body.path.open("rb") as file:
            if start < end and self.connection.sendfile(file, start, end - start) < end - start:
                raise ConnectionAbortedError("the file became shorter while it was sent")

    def _log(self, status: int) -> None:
        if len(self.server.log) >= _LOG_MAX:
            del self.server.log[: _LOG_MAX // 2]
        self.server.log.append(
            Request(self.command, self.path, self.headers, status, self.server.server_address[1])
        )

    def log_message(self, format: str, *args: Any) -> None:
        return None


def _server_error() -> Answer:
    """A bug of the hub: the traceback goes to its terminal."""
    traceback.print_exc()
    return refusal_answer(Refusal(500, "the local hub failed; its terminal shows where"))


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open byte range that a Range header asks for, cut to ``size``; None where it asks for all.

    An empty range (start >= end) cannot be satisfied. Several ranges at once are treated as none.
    """
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header[len("bytes=") :].strip().partition("-")
    if not dash or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def unquoted(groups: dict[str, str | None]) -> dict[str, str]:
    """The groups that matched, percent-decoded."""
    return {name: unquote(value) for name, value in groups.items() if value is not None}
