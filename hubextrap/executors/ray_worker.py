"""What runs on the nodes of a Ray cluster: one unit of a plan, and the board that its driver reads.

Ray finds both by their names, so each node needs this package in the driver's version.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError, OutputError
from hubextrap.work.doing import Worker, may_pass
from hubextrap.work.kinds import PLAN_FILE, work_from_bytes
from hubextrap.work.places import open_place
from hubextrap.work.records import Record, error_as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.progress import Stage
    from hubextrap.work.places import Place

RECORD, ERROR = "record", "error"
PACE = 1.0
"""Seconds from one message to the board to the next."""


class Board:
    """An actor, which attempts tell how far they are. What they tell is absolute: any of it may be lost."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int, str, str]] = {}
        self._warnings: list[str] = []

    def tell(self, attempt: str, figures: tuple[int, int, str, str], warnings: Sequence[str]) -> None:
        """Take down what an attempt has done.

        Args:
            figures: bytes read; a count that grows with any progress; the node's id, and its name.
            warnings: for the user.
        """
        self._told[attempt] = figures
        self._warnings += warnings

    def told(self) -> tuple[dict[str, tuple[int, int, str, str]], list[str]]:
        """The last figures of each attempt, and warnings that have not been asked for yet."""
        warnings, self._warnings = self._warnings, []
        return self._told, warnings


def do_unit(
    plan: Sequence[Any],
    digest: str,
    place: str,
    unit: int,
    needed: Sequence[bytes],
    board: Any,
    attempt: str,
) -> tuple[str, bytes]:
    """A Ray task: do one unit of a plan.

    Args:
        plan: Ray's reference to the plan's bytes, in a list so that Ray does not copy them for each unit.
        digest: the plan's.
        place: the name of the plan's; records are written there too where this node sees it.
        needed: records that the unit needs.
        board: the handle of a `Board`.
        attempt: what this attempt is called on it.

    Returns:
        ``RECORD`` and the record's bytes; or ``ERROR`` and JSON with ``error``, ``may_pass`` and ``node``.
        Nothing is raised, so no object of ours is pickled.
    """
    node_id, node = _this_node()
    try:
        with _telling.attempt(board, attempt, node_id, node):
            worker, kept = _worker(plan[0], digest, place, node)
            records = [Record.from_bytes(data, "a record that a unit needs") for data in needed]
            record = worker.do(unit, kept, {one.unit: one for one in records})
            return RECORD, record.to_bytes()
    except KeyboardInterrupt:  # cancelled
        _forget()
        raise
    except Exception as error:
        _forget()
        passing = may_pass(error)
        if not isinstance(error, HubExtrapError):
            traceback.print_exc()  # into the log that Ray keeps of this worker
            error = HubExtrapError(f"{type(error).__name__}: {error} (unit {unit} on node {node})")
        answer = {"error": error_as_json(error), "may_pass": passing, "node": node}
        return ERROR, json.dumps(answer).encode()


class _Telling:
    """The progress of this process's units, as the board hears of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = self._moved = 0
        self._warnings: list[str] = []

    @contextmanager
    def attempt(self, board: Any, attempt: str, *node: str) -> Iterator[None]:
        """Tell of one attempt, from now to its end."""
        self._read = self._moved = 0
        self._warnings = []
        ended = threading.Event()

        def report() -> None:
            last = None
            while True:
                with self._lock:
                    figures, warnings, self._warnings = (self._read, self._moved, *node), self._warnings, []
                if figures != last or warnings:
                    with suppress(Exception):  # the work goes on without a board
                        board.tell.remote(attempt, figures, warnings)
                        last = figures
                if ended.wait(PACE):
                    return

        thread = threading.Thread(target=report, name="hubextrap-telling", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Stage]:
        self._advance(0)
        yield _Stage(self, counts=unit == "B" and not label.startswith("upload"))
        self._advance(0)

    def say(self, line: str) -> None:
        self._advance(0)

    def warn(self, line: str) -> None:
        with self._lock:
            self._warnings.append(line)

    def _advance(self, read: int) -> None:
        with self._lock:
            self._read += read
            self._moved += 1


class _Stage:
    def __init__(self, telling: _Telling, *, counts: bool) -> None:
        self._telling, self._counts = telling, counts

    def advance(self, amount: int) -> None:
        self._telling._advance(amount if self._counts else 0)


_telling = _Telling()
_held: dict[str, tuple[Worker, Place | None]] = {}
"""The worker of the plan that this process is at, by the plan's digest: Ray gives a process many units."""


def _worker(plan: Any, digest: str, place: str, node: str) -> tuple[Worker, Place | None]:
    if digest not in _held:
        _forget()
        data = import_module("ray").get(plan)
        here = work_from_bytes(data, f"{place}/{PLAN_FILE}, on node {node}")
        found: Place | None = open_place(place)
        if found is not None and found.read(PLAN_FILE) != data:
            found = None  # a folder of the driver's machine
            if here.folders:
                raise OutputError(
                    f"{place}: node {node} does not see it as the driver does; an output folder has to be "
                    "one that all nodes share under the same path, or push straight to the Hub"
                )
        _held[digest] = Worker(here.one_thread(), _telling), found
    return _held[digest]


def _forget() -> None:
    """Close what is open: after an error, too, as a connection may be what is broken."""
    for worker, _ in _held.values():
        with suppress(Exception):
            worker.__exit__()
    _held.clear()


def _this_node() -> tuple[str, str]:
    """Its id in the cluster, and what messages call it."""
    ray: Any = import_module("ray")
    address = ray.util.get_node_ip_address()
    return ray.get_runtime_context().get_node_id(), f"{os.uname().nodename} ({address})"
