"""What holds of every executor, of the one that does the units in this process."""

from __future__ import annotations

import pytest

from hubextrap.executors.local import LocalExecutor
from hubextrap.executors.testing import ExecutorTests


class TestLocal(ExecutorTests):
    @pytest.fixture
    def executor(self) -> LocalExecutor:
        return LocalExecutor()
