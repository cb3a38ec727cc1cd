"""Faults to inject into answers, and the log of what was asked: how tests see the wire."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message


@dataclass
class Fault:
    """What goes wrong for the next ``count`` requests that match.

    With none of ``status``, ``drop`` and ``cut_upload`` the request gets its normal answer, changed by the
    other fields.

    Attributes:
        path: regular expression searched in the raw path with its query; CDN and upload links start
            with ``/lfs/``.
        method: only requests of this method; None matches all.
        status: answer with this status and a short JSON body.
        headers: added to the answer, replacing those of the same name.
        count: how many requests it hits before it is spent.
        truncate: send the full headers, then only this many bytes of the body, then cut the connection.
        ignore_range: answer a Range request with 200 and the whole body.
        shift_range: answer a Range request with a range that starts this many bytes later.
        drop: cut the connection without any answer.
        cut_upload: read only this many bytes of the request's body, then cut the connection.
        after: carry the request out first (a commit lands) and only then answer ``status`` or ``drop``.
        delay: seconds to wait before anything else.
        until: waited for before anything else, a minute at most; its owner sets it to let the requests go on.
    """

    path: str
    method: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    truncate: int | None = None
    ignore_range: bool = False
    shift_range: int = 0
    drop: bool = False
    cut_upload: int | None = None
    after: bool = False
    delay: float = 0.0
    until: threading.Event | None = None


class Faults:
    """The faults to come, first added first used. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let ``fault`` hit the requests that it matches from now on."""
        re.compile(fault.path)
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._faults.clear()

    def pending(self) -> int:
        """How many hits are left over all faults: 0 when each has hit as often as asked."""
        with self._lock:
            return sum(fault.count for fault in self._faults)

    def strike(self, method: str, path: str) -> Fault | None:
        """The fault that hits this request, counted down; None if it is spared."""
        with self._lock:
            for fault in self._faults:
                if fault.count > 0 and fault.method in (None, method) and re.search(fault.path, path):
                    fault.count -= 1
                    return fault
        return None


@dataclass(frozen=True)
class Request:
    """One request as it arrived: ``path`` is raw with its query, ``status`` is 0 for a dropped connection."""

    method: str
    path: str
    headers: Message
    status: int
    port: int
