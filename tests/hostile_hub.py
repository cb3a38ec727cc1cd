"""A server in front of a real hub: it passes requests on, and at a chosen one its answers turn hostile."""

# ruff: noqa: E501 - a table

from __future__ import annotations

import gzip
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Headers = tuple[tuple[str, str], ...]
HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length", "host")


@dataclass(frozen=True)
class Hostile:
    """What is answered in place of the hub. A status of 0 is no answer: ``body`` says what happens."""

    status: int
    body: bytes = b""
    headers: Headers = ()

    def __str__(self) -> str:
        return f"{self.status} {self.body[:60]!r} {self.headers!r:.200}"


STATUSES = (
    200,
    200,
    200,
    200,
    201,
    204,
    206,
    302,
    307,
    400,
    401,
    403,
    404,
    409,
    416,
    418,
    429,
    451,
    500,
    503,
    507,
    599,
)
BODIES: tuple[bytes, ...] = (
    b"",
    b"<!doctype html><title>Log in to the Wi-Fi</title><p>Welcome</p>",
    b"null", b"true", b"1", b'"text"', b"[]", b"{}", b"[null]", b"[[]]", b"[{}]", b'[{"type": "file"}]', b'["a"]',
    b'{"error": {"a": 1}}', b'{"error": "\\u001b[31mred\\u202e"}', b'{"error": ["x"]}', b'{"sha": null}', b'{"sha": 7}',
    b'{"sha": ["x"], "id": {}}', b'{"id": "me/x", "sha": "../../x"}', b'{"id": "me/x", "sha": "\\ud800"}',
    b'{"branches": null, "tags": {}, "converts": []}', b'{"branches": [{}], "tags": [{}], "converts": [{}]}',
    b'{"branches": [{"name": 1, "ref": 2, "targetCommit": 3}], "tags": [], "converts": []}',
    b'{"branches": [{"name": "step_1", "ref": "x", "targetCommit": "y"}], "tags": [], "converts": []}',
    b'[{"type": "file", "path": null, "size": "x", "oid": 1}]',
    b'[{"type": "file", "path": "model.safetensors", "size": -1, "oid": "x"}]',
    b'[{"type": "file", "path": "model.safetensors", "size": 1e300, "oid": []}]',
    b'[{"type": "file", "path": "../../model.safetensors", "size": 9, "oid": "0", "lfs": {"oid": 1, "size": {}}}]',
    b'[{"type": "file", "path": "model.safetensors", "size": 9, "oid": "0", "lfs": []}]',
    b'[{"id": 5, "title": 6, "message": 7, "authors": 8, "date": 9}]',
    b'[{"id": "x", "title": "step 5", "message": "", "authors": [], "date": "2024-02-30T00:00:00.000Z"}]',
    b'{"name": 1, "auth": null, "orgs": 5}', b'{"files": [{"path": 1}]}', b'{"files": [{}]}', b'{"files": null}',
    b'{"objects": [{}]}', b'{"objects": [{"oid": 1, "actions": {"upload": {"href": "file:///etc/passwd"}}}]}',
    b'{"commitUrl": 5, "commitOid": null}', b'{"errors": [1], "warnings": {}}',
    b'{"a": ' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"a":' * 3_000 + b"1" + b"}" * 3_000, b'{"sha": "' + b"a" * 300_000 + b'"}',
    b"\xff\xfe\x00", b"{\"sha\": \"\xff\"}", "{}".encode("utf-16"), b"[NaN, 1e999]", b"x" * 200_000,
)  # fmt: skip
HEADERS: tuple[Headers, ...] = (
    (), (), (), (),
    (("Content-Type", "text/html"),), (("Content-Type", "application/json; charset=utf-7"),), (("Content-Type", "\xff"),),
    (("Content-Encoding", "gzip"),), (("Content-Encoding", "zstd, br"),),
    (("Content-Range", "bytes 0-9/5"),), (("Content-Range", "bytes 0-" + "9" * 500),), (("Content-Length", "9" * 30),),
    (("Content-Length", "-1"),), (("Content-Length", "1"),),
    (("Retry-After", "1e9"),), (("Retry-After", "-5"),), (("Retry-After", "9" * 400),), (("Retry-After", "soon"),),
    (("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"),), (("Retry-After", "\xb2"),), (("Retry-After", "1000000000"),),
    (("RateLimit", '"api";r=0;t=99999999'),), (("RateLimit", '"api";r=0;t=' + "9" * 5000),),
    (("Link", '<{self}>; rel="next"'),), (("Link", '<{self}?cursor={count}>; rel="next"'),),
    (("Link", '<file:///etc/passwd>; rel="next"'),), (("Link", '<http://127.0.0.2:9/x>; rel="next"'),),
    (("ETag", ""),), (("ETag", '"' + "x" * 5_000 + '"'),), (("X-Repo-Commit", "../../x"),), (("X-Repo-Commit", ""),),
    (("X-Linked-Size", "-1"),), (("X-Linked-Size", "x"),), (("X-Linked-Etag", "\x1b]0;"),),
    (("X-Error-Message", "a\x1b[31m\x07" + "b" * 8_000),), (("X-Error-Code", "RevisionNotFound"),), (("X-Error-Code", "GatedRepo"),),
    (("X-HF-Warning", "a; \x1b[31m" + "b" * 100),), (("Location", "{self}"),), (("Location", "file:///etc/passwd"),),
    (("Location", "http://[::1"),), (("Location", "https://127.0.0.1:1/x"),), (("Location", "//127.0.0.2:9/x"),), (("Location", "ftp://127.0.0.1/"),), (("Location", "\n"),),
    (("Set-Cookie", "a=b; Domain=.; Expires=never"),), (("X" * 3_000, "y"),), (("Transfer-Encoding", "chunked"),),
)  # fmt: skip
WORSE = (
    Hostile(0, b"reset"),
    Hostile(0, b"close"),
    Hostile(0, b"noise"),
    Hostile(0, b"half a header"),
    Hostile(0, b"many headers"),
    Hostile(200, gzip.compress(b"[" + b"0," * 30_000_000 + b"0]", 9), (("Content-Encoding", "gzip"),)),
)


def hostile_answers(seed: int, count: int) -> Iterator[Hostile]:
    """Statuses × bodies × headers, and what is no answer at all, in an order of chance."""
    choose = random.Random(seed)
    for _ in range(count):
        if choose.random() < 0.06:
            yield choose.choice(WORSE)
        else:
            yield Hostile(choose.choice(STATUSES), choose.choice(BODIES), choose.choice(HEADERS))


@dataclass
class HostileHub:
    """Where it listens, what it does and what it saw."""

    url: str
    answer: Hostile | None = None
    first: int = 0
    """How many requests the hub answers before ``answer`` is all there is."""
    drip: str | None = None
    """Of answers to paths that hold this, one byte comes every few seconds."""
    requests: int = 0
    dripping: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hostile_hub(hub_url: str) -> Iterator[HostileHub]:
    hub = urlsplit(hub_url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server: Server

        def do_GET(self) -> None:
            state.requests += 1
            given = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            if state.answer is not None and state.requests > state.first:
                self.close_connection = True
                with suppress(ConnectionError):
                    self._hostile(state.answer)
                return
            self._pass_on(given)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def _hostile(self, answer: Hostile) -> None:
            if answer.status == 0:
                self._nothing(answer.body)
                return
            me = f"{state.url}{self.path.partition('?')[0]}"
            filled = {
                name: value.replace("{self}", me).replace("{count}", str(state.requests))
                for name, value in answer.headers
            }
            filled.setdefault("Content-Length", str(len(answer.body)))
            lines = [f"HTTP/1.1 {answer.status} So", *(f"{name}: {value}" for name, value in filled.items())]
            self.wfile.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def _nothing(self, what: bytes) -> None:
            if what == b"reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif what == b"noise":
                self.wfile.write(bytes(range(256)) * 20)
            elif what == b"half a header":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            elif what == b"many headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 50_000)
            elif what == b"interim answers":
                end = time.monotonic() + 60
                with suppress(OSError):
                    while time.monotonic() < end:
                        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nX-Y: z\r\n\r\n" * 20)
                        time.sleep(0.05)

        def _pass_on(self, given: bytes) -> None:
            onward = http.client.HTTPConnection(hub.hostname or "", hub.port, timeout=60)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            onward.request(self.command, self.path, given or None, kept)
            answer = onward.getresponse()
            body = answer.read()
            if "json" in answer.getheader("Content-Type", ""):  # addresses for uploads
                body = body.replace(hub_url.encode(), state.url.encode())
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value.replace(hub_url, state.url))
            length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            onward.close()
            if self.command == "HEAD":
                return
            if state.drip is not None and state.drip in self.path and self.command == "GET":
                with suppress(OSError):
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        state.dripping.set()
                        time.sleep(3)
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            return None

    server = Server(("127.0.0.1", 0), Handler)
    state = HostileHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
