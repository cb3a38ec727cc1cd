"""The demo's trajectory and tasks, and a hub that holds them."""

from __future__ import annotations

import gc
from importlib import import_module
from pathlib import Path

import pytest

TASKS = Path(__file__).parents[2] / "demo" / "tasks"


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage() -> None:
    """Garbage is collected after each measurement, and most of its time goes into looking at libraries."""
    import_module("hubextrap.evaluation.model")
    gc.collect()
    gc.freeze()


@pytest.fixture
def trajectory(demo_data: Path) -> Path:
    """Folder of the bundled checkpoints, step_0 … step_400."""
    return demo_data / "rlvr-C"


@pytest.fixture
def demo_tasks() -> Path:
    """Folder of the tasks radd and radd_sampled."""
    return TASKS
