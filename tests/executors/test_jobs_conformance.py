"""JobsExecutor by the tests that every executor has to pass, with jobs as processes of the loopback Hub.

The jobs of that Hub see this machine's folders, so the place of the tests can be one.
"""

from __future__ import annotations

import pytest

from hubextrap.executors.jobs import JobsExecutor
from hubextrap.executors.testing import SECRET, ExecutorTests
from hubextrap.executors.testing_run import SHARDS
from hubextrap.localhub import LocalHub
from hubextrap.localhub.access import Account

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logged_in")]


class TestJobsExecutor(ExecutorTests):
    workers = 2
    patience = 120.0

    @pytest.fixture
    def executor(self, jobs_hub: LocalHub, request: pytest.FixtureRequest) -> JobsExecutor:
        self._hub = jobs_hub
        jobs_hub.tokens[SECRET] = Account("me")
        # Two start faster; for one that waits, no other unit may be in its job.
        jobs = SHARDS if "slow_unit" in request.node.name else self.workers
        made = JobsExecutor(jobs, bucket="me/work")
        made.interval, made.settle = 0.1, 0.5
        return made

    def worker_pids(self) -> list[int]:
        assert self._hub.jobs is not None
        return list(self._hub.jobs.processes().values())
