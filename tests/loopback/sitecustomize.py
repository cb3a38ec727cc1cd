"""Refuses every connection to another machine, and notes it for the test that made it.

conftest.py installs it in its own process, and has each Python that a test starts import it by its name.
"""

from __future__ import annotations

import os
import sys

NOTES = "HUBEXTRAP_TESTS_OTHER_HOSTS"
"""The variable with the path of the file of notes: a line for each attempt."""
_OWN = ("", "localhost", "::", "::1", "0.0.0.0")
_EVENTS = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.connect": 1, "socket.sendto": 1}
"""What Python tells of a socket, and which of its arguments is the host or begins with it."""


def _refuse_others(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _EVENTS:
        return
    host = arguments[_EVENTS[event]]
    if isinstance(host, tuple):
        host = host[0]
    elif event in ("socket.connect", "socket.sendto"):
        return  # a socket in the file system
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in _OWN or name.startswith("127."):
        return
    with open(os.environ[NOTES], "a", encoding="utf-8") as notes:  # noqa: PTH123 - in each start of Python
        notes.write(f"{name} ({' '.join(sys.argv)[:200]})\n")
    raise OSError(f"{name}: a test must not reach another machine")


if NOTES in os.environ:
    sys.addaudithook(_refuse_others)
