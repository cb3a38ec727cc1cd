"""What comes in over a connection: the head of a request and its body, within bounds of size and time.

Nothing ambiguous is read one way or the other: a length twice, one beside chunks, a header that is folded or
has a space before its colon. Such a request is answered with 400 and its connection closed, as nobody knows
where the next one begins.
"""

from __future__ import annotations

import io
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPMessage
from typing import TYPE_CHECKING

from hubextrap.localhub.refusal import Refusal

if TYPE_CHECKING:
    from typing_extensions import Buffer

IDLE_SECONDS = 90.0
"""Longer than clients keep idle connections pooled, so that they never meet a closed one."""
_HEAD_SECONDS = 20.0
_HEAD_MAX = 32_768  # bytes of a request line and its headers
_HEADERS_MAX = 64
_TARGET_MAX = 8_192
_SLOWEST = 1_024  # bytes per second of a body, after a first minute
_DRAIN_MAX, _DRAIN_SECONDS = 1 << 24, 10.0
_CHUNK = 1 << 20
BODY_MAX = 1 << 20
"""Bytes of a body, where its endpoint says nothing else."""

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x20-\x7e\x80-\xff\t]*[^ \t])?)[ \t]*")
_ONCE = ("authorization", "content-length", "content-type", "host", "origin", "transfer-encoding")


class Inbound(io.RawIOBase):
    """The bytes of a connection, the next within the time for idle ones, and all before ``deadline``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        left = IDLE_SECONDS if self.deadline is None else self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request takes too long")
        self._connection.settimeout(min(left, IDLE_SECONDS))
        return self._connection.recv_into(buffer)


@dataclass(frozen=True)
class Head:
    """The first lines of a request."""

    method: str
    target: str
    keep_alive: bool
    headers: Message
    size: int


def read_head(file: io.BufferedReader, inbound: Inbound) -> Head | None:
    """The head of the next request; None where the client has closed the connection.

    Raises:
        Refusal: it is not HTTP/1, is ambiguous or too large.
        TimeoutError: it did not arrive in time.
    """
    if not file.peek(1):
        return None
    inbound.deadline = time.monotonic() + _HEAD_SECONDS
    lines: list[bytes] = []
    left = _HEAD_MAX
    while True:
        line = file.readline(left + 1)
        left -= len(line)
        if left < 0:
            raise Refusal(431, f"more than {_HEAD_MAX} bytes of headers")
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the client closed the connection in the middle of a request's head")
        line = line[:-1].removesuffix(b"\r")
        if not line:
            if lines:
                break
            continue  # an empty line ahead of a request is none
        lines.append(line)
        if len(lines) > _HEADERS_MAX + 1:
            raise Refusal(431, f"more than {_HEADERS_MAX} headers")
    inbound.deadline = None
    return _head(lines, _HEAD_MAX - left)


def _head(lines: list[bytes], size: int) -> Head:
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is None:
        raise Refusal(400, "the first line is not a method, a path and HTTP/1.1")
    target = first[2].decode("ascii")
    if len(target) > _TARGET_MAX:
        raise Refusal(414, f"the path has more than {_TARGET_MAX} bytes")
    headers = HTTPMessage()
    for line in lines[1:]:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise Refusal(400, "a header line is not a name, a colon and a value")
        headers[found[1].decode("ascii")] = found[2].decode("latin-1")
    for name in _ONCE:
        if len(headers.get_all(name, [])) > 1:
            raise Refusal(400, f"the header {name} is there more than once")
    latest = first[3] == b"1"
    wishes = headers.get("Connection", "").lower()
    keep_alive = "close" not in wishes if latest else "keep-alive" in wishes
    return Head(first[1].decode("ascii"), target, keep_alive, headers, size)


class Body:
    """The body of a request, plain or chunked, read as a stream of at most ``limit`` bytes."""

    def __init__(self, file: io.BufferedReader, headers: Message, answer: io.BufferedIOBase) -> None:
        """``answer`` gets the word that a client waits for before it sends a body, once that is to be read.

        Raises:
            Refusal: where it ends is not clear.
        """
        encoding, length = headers.get("Transfer-Encoding"), headers.get("Content-Length")
        if encoding is not None and (encoding.lower() != "chunked" or length is not None):
            raise Refusal(400, "a body is either chunked or has a Content-Length")
        if not re.fullmatch(r"[0-9]{1,15}", length or "0", re.ASCII):
            raise Refusal(400, "the Content-Length is not a number")
        self.limit = BODY_MAX
        self._file = file
        self._answer = answer
        self._waits = headers.get("Expect", "").lower() == "100-continue"
        self._chunked = encoding is not None
        self._left = int(length or 0)
        self._read = 0

    @property
    def ended(self) -> bool:
        """Whether all of it has been read."""
        return not self._left and not self._chunked

    def chunks(self) -> Iterator[bytes]:
        """What is left of the body.

        Raises:
            ConnectionError: the client went away in the middle.
            Refusal: it is larger than ``limit``, or not chunked as it should be.
            TimeoutError: it comes too slowly.
        """
        self._check_size()
        if self._waits and not self.ended:
            self._waits = False
            self._answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._answer.flush()
        started = time.monotonic()
        while self._left or (self._chunked and self._next_chunk()):
            chunk = self._file.read1(min(self._left, _CHUNK))
            if not chunk:
                raise ConnectionResetError("the client closed the connection in the middle of a body")
            self._left -= len(chunk)
            self._read += len(chunk)
            if time.monotonic() - started > 60 + self._read / _SLOWEST:
                raise TimeoutError("the body comes too slowly")
            if not self._left and self._chunked:
                self._end_of_line()
            yield chunk

    def read(self) -> bytes:
        """All that is left of the body."""
        return b"".join(self.chunks())

    def drain(self) -> bool:
        """Read the rest and forget it; whether the connection can carry the next request.

        A rest that is long is not waited for, as a client need not have a token to send it.
        """
        if self._waits and not self.ended:
            return False
        self.limit = self._read + _DRAIN_MAX
        deadline = time.monotonic() + _DRAIN_SECONDS
        try:
            for _ in self.chunks():
                if time.monotonic() > deadline:
                    return False
        except (ConnectionError, TimeoutError, Refusal):
            return False
        return True

    def _check_size(self) -> None:
        if self._read + self._left > self.limit:
            raise Refusal(413, f"the body has more than {self.limit} bytes")

    def _next_chunk(self) -> bool:
        line = self._line()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", line):
            raise Refusal(400, "a chunk without its length")
        self._left = int(line, 16)
        self._check_size()
        if self._left == 0:
            self._end_of_line()  # trailers are of no use here
            self._chunked = False
        return self._left > 0

    def _end_of_line(self) -> None:
        if self._line():
            raise Refusal(400, "a chunk does not end where it should")

    def _line(self) -> bytes:
        line = self._file.readline(32)
        if not line:
            raise ConnectionResetError("the client closed the connection in the middle of a body")
        if not line.endswith(b"\n"):
            raise Refusal(400, "a chunk without its length")
        return line[:-1].removesuffix(b"\r")
