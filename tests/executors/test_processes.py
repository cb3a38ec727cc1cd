"""What holds of every executor, of one whose workers are processes: they can be killed and stopped."""

from __future__ import annotations

import pytest
from executors.processes import ProcessExecutor

from hubextrap.executors.testing import ExecutorTests


@pytest.mark.slow
class TestProcesses(ExecutorTests):
    workers = 2
    detects_hangs = True

    @pytest.fixture
    def executor(self) -> ProcessExecutor:
        self.made = ProcessExecutor()
        return self.made

    def worker_pids(self) -> list[int]:
        return [process.pid for process in list(self.made.running) if process.pid is not None]
