"""A Ray cluster of two nodes with two workers each, all on 127.0.0.1, as a process of its own.

Run as a script it starts the nodes, prints their address, and ends them when its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without it Ray replaces 127.0.0.1 by this machine's address in a network, which a test must not use."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
NODES, WORKERS = 2, 2


class Nodes:
    """The cluster.

    Args:
        environment: variables that the nodes get beside those of this process.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets have to be short
        self.environment = {**LOOPBACK, **QUIET, "RAY_TMPDIR": str(self.folder)}
        said = self.folder / "said"
        with said.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | self.environment | (environment or {}),
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address.startswith("127.0.0.1:"), said.read_text()
        self.environment["RAY_ADDRESS"] = self.address

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    @contextlib.contextmanager
    def folder_only() -> Iterator[Path]:
        """A folder for what Ray writes."""
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def join(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process find it; `ray.init` then connects to it."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        constants = import_module(
            "ray._private.ray_constants"
        )  # which reads the variable when it is imported
        monkeypatch.setattr(constants, "ENABLE_RAY_CLUSTER", False)

    def workers(self, doing: str | tuple[str, ...] = "ray::do_unit") -> list[int]:
        """The processes of its workers that are doing units just now, or something else by its title."""
        return [pid for pid, title in self._titles() if title.startswith(doing)]

    def processes(self) -> list[int]:
        """All processes of Ray's that belong to it."""
        return [pid for pid, title in self._titles()]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        for pid, _ in self._titles():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _titles(self) -> Iterator[tuple[int, str]]:
        mark = f"RAY_TMPDIR={self.folder}\0".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes() + b"\0":
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield int(entry.name), title


def attempts_but_rays(attempts: list[str]) -> list[str]:
    """Attempts at reaching another machine, without those of a part of Ray that asks which cloud it is in."""
    return [line for line in attempts if "/ray/dashboard/dashboard.py" not in line]


def wait_until(
    condition: Callable[[], bool], seconds: float = 30.0, left: Callable[[], object] = lambda: ""
) -> None:
    """Return when it holds.

    Args:
        left: what to show where it does not.

    Raises:
        AssertionError: it does not, after so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {left()}"
        time.sleep(0.05)


def main() -> None:
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {
        "num_cpus": WORKERS,
        "memory": 4_000_000_000,
        "object_store_memory": 80_000_000,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(NODES - 1):
        cluster.add_node(**node)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
