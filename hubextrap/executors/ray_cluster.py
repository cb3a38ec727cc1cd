"""The Ray cluster to work on: one that is there, or one of this machine for as long as the work lasts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError, MissingExtra, SourceError
from hubextrap.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL_STORE = 80_000_000
"""Bytes of the object store of a cluster that is started here, it holds a plan; Ray takes 75 MB at least."""
LOOPBACK = "127.0.0.1"
ADDRESS = "RAY_ADDRESS"
ANSWER = 10.0
"""Seconds in which a cluster's port has to take a connection."""
PARTING = 0.5
"""Seconds that what is cancelled has to end by itself; Ctrl-C ends this process within 1.2 s."""
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray takes this machine's address for the loopback one, as it does on macOS without it."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster that this process is connected to."""

    ray: Any
    """The module."""
    own: bool
    """Whether it was started here: all its nodes are this machine."""
    started: tuple[Any, ...] = ()
    """The processes that Ray started for it then, by psutil; its workers are their children."""


class _Session:
    """The connection of this process: Ray has one for all its threads."""

    lock = threading.Lock()
    users = 0
    connection: Connection
    ends = False
    """Whether it was made here, and so ends with its last user."""


def is_there() -> bool:
    """Whether `connected` would join a cluster, and not start one."""
    loaded = sys.modules.get("ray")
    joined = loaded is not None and loaded.is_initialized()
    return joined or bool(os.environ.get(ADDRESS) or _noted_address())


@contextmanager
def connected(plan_size: int, processors: int | None = None) -> Iterator[Connection]:
    """Connect to a cluster for a while.

    That is, in this order: the one that this process is connected to already, which stays so; the one that
    ``RAY_ADDRESS`` names; the one that ``ray start`` has started on this machine; one that is started here,
    on the loopback address, and ended afterwards.

    Args:
        plan_size: bytes that its object store has to hold.
        processors: of a cluster that is started here; all that this process may use where None.

    Raises:
        MissingExtra: Ray is not installed, is too old, or lacks what an address with ``ray://`` takes.
        SourceError: the cluster cannot be reached or started.
    """
    with _Session.lock:
        if not _Session.users:
            loaded = sys.modules.get("ray")
            _Session.ends = loaded is None or not loaded.is_initialized()
            _Session.connection = (
                _connect(plan_size, processors) if _Session.ends else Connection(loaded, own=False)
            )
        _Session.users += 1
    done = False
    try:
        yield _Session.connection
        done = True
    finally:
        with _Session.lock:
            _Session.users -= 1
            if _Session.ends and not _Session.users:
                _end(_Session.connection, at_once=not done)


def is_ending() -> bool:
    """Whether the end of the `connected` block around this ends all that it has under way on the cluster."""
    return _Session.ends and _Session.users == 1


def _end(connection: Connection, *, at_once: bool) -> None:
    """Disconnect. A cluster that was started here is ended, and no process of it is left.

    Ray's own end takes longer than Ctrl-C may, and its agents survive a node that is killed meanwhile.
    """
    ray = connection.ray
    if not connection.own:
        ray.shutdown()
        return
    psutil: Any = import_module("psutil")  # which comes with Ray
    processes = list(connection.started)
    for process in connection.started:
        with suppress(psutil.Error):
            processes += process.children(recursive=True)

    def kill() -> None:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()

    def kill_soon() -> None:
        latest = time.monotonic() + PARTING
        while ray.is_initialized() and time.monotonic() < latest:  # without its node this process would end
            time.sleep(0.02)
        time.sleep(PARTING / 2)
        kill()

    killer = threading.Thread(target=kill_soon, name="hubextrap-ray-end", daemon=True)
    if at_once:
        killer.start()
    ray.shutdown()
    kill()


def _connect(plan_size: int, processors: int | None) -> Connection:
    there = os.environ.get(ADDRESS)
    if there:
        if (silent := _is_silent(there)) is not None:
            raise _unreachable(there, silent)
    elif (noted := _noted_address()) is not None and _is_silent(noted) is None:
        there = noted
    with _settings_kept(alone=not there):
        require("ray", "--executor ray")
        ray: Any = import_module("ray")
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        local = {
            "address": "local",
            "num_cpus": processors or len(_processors()),
            "include_dashboard": False,
            "object_store_memory": max(LOCAL_STORE, 2 * plan_size),
            "_node_ip_address": LOOPBACK,
        }
        this: Any = import_module("psutil").Process()
        others = this.children()
        try:
            ray.init(**quiet, **({} if there else local))
        except ImportError as error:  # ray:// is spoken by grpcio
            raise MissingExtra(f"{there}: {error}; pip install 'hubextrap[ray]'", extra="ray") from error
        except Exception as error:
            raise _unreachable(there, error) from error
    started = () if there else tuple(one for one in this.children() if one not in others)
    return Connection(ray, own=not there, started=started)


def first_line(error: object) -> str:
    """What Ray says in many lines, as one."""
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)


def _noted_address() -> str | None:
    """The cluster that the last ``ray start`` on this machine has noted."""
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray")
    with suppress(OSError):
        return (folder / "ray_current_cluster").read_text().strip() or None
    return None


def _is_silent(address: str) -> OSError | None:
    """Why nobody answers at the port of a cluster; Ray itself would try that for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return None  # a name that Ray resolves itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        return OSError(getattr(error, "strerror", None) or str(error))
    return None


def _unreachable(there: str | None, error: Exception) -> HubExtrapError:
    if not there:
        return SourceError(
            f"Ray does not start on this machine: {first_line(error)}; its logs are in "
            f"{tempfile.gettempdir()}/ray/session_latest/logs"
        )
    named = (
        f"{ADDRESS} names it: correct or unset it"
        if os.environ.get(ADDRESS)
        else "`ray start` has noted it: `ray stop` ends and forgets it"
    )
    return SourceError(f"the Ray cluster {there} cannot be joined: {first_line(error)}; {named}")


def _processors() -> set[int] | range:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


@contextmanager
def _settings_kept(*, alone: bool) -> Iterator[None]:
    """Undo what `ray.init` changes in this process; ``alone``: have Ray listen on the loopback address."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    setting = os.environ.get(_LOOPBACK_ONLY)
    if alone:
        os.environ[_LOOPBACK_ONLY] = "0"
    try:
        yield
    finally:
        if alone:
            os.environ.pop(_LOOPBACK_ONLY)
            if setting is not None:
                os.environ[_LOOPBACK_ONLY] = setting
        if main:
            signal.signal(signal.SIGTERM, handler)
