"""Watched runs on the loopback Hub and on a disk, and `hubextrap` in processes that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, Warm

from hubextrap.tensors import build_header

SHAPES = {"a.weight": (48, 32), "b.weight": (32, 16), "norm.weight": (32,)}


@pytest.fixture(scope="session")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    warm = Warm(tmp_path_factory.mktemp("warm"), ROOT / "demo" / "data" / "rlvr-C" / "step_0")
    yield warm
    warm.close()


@pytest.fixture
def warm(_warm: Warm, token: str) -> Warm:
    """Runs commands as user "me"."""
    _warm.environment["HF_TOKEN"] = token
    return _warm


@pytest.fixture
def rlvr_c(demo_data: Path) -> Path:
    """Folders step_0 … of a real run."""
    return demo_data / "rlvr-C"


@pytest.fixture
def checkpoint() -> Callable[..., Path]:
    """Write the checkpoint of a step of a made run, which goes on along a line with noise; its folder."""

    def write(run: Path, step: int, *, seed: int = 0) -> Path:
        folder = run / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        drift, noise = np.random.default_rng(seed), np.random.default_rng([seed, step])
        data = b""
        for shape in SHAPES.values():
            start, slope = drift.standard_normal((2, *shape))
            moved = start + 1e-3 * step * slope + 5e-3 * noise.standard_normal(shape)
            data += moved.astype("<f4").tobytes()
        header = build_header([(name, "F32", shape) for name, shape in SHAPES.items()])
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
        (folder / "model.safetensors").write_bytes(header + data)
        return folder

    return write


Checkpoint = Callable[..., Path]
