from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubextrap.localhub import LocalHub
from hubextrap.localhub.jobs import Jobs

pytest.register_assert_rewrite("hubextrap.executors.testing", "hubextrap.executors.testing_run")

_PASSED_ON = ("PYTHONPATH", "HUBEXTRAP_TESTS_OTHER_HOSTS", "OMP_NUM_THREADS")


@pytest.fixture
def jobs_hub(hub: LocalHub, tmp_path: Path) -> Iterator[LocalHub]:
    """The session's hub, for once one that runs jobs."""
    hub.jobs = Jobs(tmp_path / "jobs")
    hub.jobs.environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    hub.jobs.environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    yield hub
    hub.jobs.stop()
    hub.jobs = None
