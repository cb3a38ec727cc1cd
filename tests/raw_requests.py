"""Requests as no client would send them."""

from __future__ import annotations

import contextlib
import socket

from hubextrap.localhub import LocalHub


def address_of(hub: LocalHub) -> tuple[str, int]:
    host, port = hub.url.removeprefix("http://").split(":")
    return host, int(port)


def ask(hub: LocalHub, sent: bytes, *, timeout: float = 5.0) -> bytes:
    """What the hub answers until it closes the connection, or until ``timeout`` without a byte."""
    with socket.create_connection(address_of(hub), timeout=timeout) as connection:
        with contextlib.suppress(OSError):  # it may have said no before all was sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while chunk := connection.recv(1 << 16):
                answer += chunk
        return answer


def request(hub: LocalHub, first: str, *headers: str, body: bytes = b"", host: bool = True) -> bytes:
    """The answer to one request."""
    own = [f"Host: {':'.join(map(str, address_of(hub)))}"] if host else []
    lines = [f"{first} HTTP/1.1", *own, "Connection: close", *headers, "", ""]
    return ask(hub, "\r\n".join(lines).encode("latin-1") + body)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
