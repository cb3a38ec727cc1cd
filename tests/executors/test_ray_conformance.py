"""Ray does all that holds of every executor, on two nodes with two workers each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ray_nodes import Nodes, attempts_but_rays

from hubextrap.executors.on_ray import RayExecutor
from hubextrap.executors.ray_cluster import connected
from hubextrap.executors.testing import ExecutorTests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Joined once for all tests: who joins gets workers of its own, which take seconds to start."""
    with Nodes() as nodes, pytest.MonkeyPatch.context() as monkeypatch:
        nodes.join(monkeypatch)
        with connected(0):
            yield nodes


@pytest.fixture
def other_hosts(other_hosts: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: attempts_but_rays(other_hosts())


class TestRayExecutor(ExecutorTests):
    workers = 4
    detects_hangs = True
    patience = 120.0

    @pytest.fixture
    def executor(self, nodes: Nodes) -> RayExecutor:
        self.nodes = nodes
        return RayExecutor(hang=10.0)

    def worker_pids(self) -> list[int]:
        return self.nodes.workers()
