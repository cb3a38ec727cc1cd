"""A small model whose weights move with a learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs_on_a_clock import STEPS, Moving, constant
from tiny_llama import save_tiny, tiny_llama


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Moving:
    folder = tmp_path_factory.mktemp("start")
    save_tiny(tiny_llama(tie_word_embeddings=False), folder)
    return Moving(folder)


@pytest.fixture(scope="session")
def turning(moving: Moving) -> Moving:
    """As `moving`, on a way that no line follows."""
    return Moving(moving.start, turn=3.0)


@pytest.fixture
def run(moving: Moving, tmp_path: Path) -> Path:
    """Warm-up to step 20, linear to 0 at step 100; observed to step 60."""
    return moving.run(tmp_path / "run", STEPS)


@pytest.fixture
def at_a_constant_rate(turning: Moving, tmp_path: Path) -> Path:
    return turning.run(tmp_path / "constant", STEPS, times=float, rate=constant)
