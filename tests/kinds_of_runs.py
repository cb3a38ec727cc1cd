"""Runs of every kind as folders, each checkpoint a few kilobytes; the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo" / "data" / "rlvr-C"
Weights = Callable[[np.random.Generator, Sequence[int]], np.ndarray]


def straight(rng: np.random.Generator, steps: Sequence[int]) -> np.ndarray:
    return np.array(steps, dtype=np.float64)[:, None] * rng.standard_normal(900)


def random_walk(rng: np.random.Generator, steps: Sequence[int]) -> np.ndarray:
    return np.cumsum(rng.standard_normal((len(steps), 900)), axis=0)


def early_transient(rng: np.random.Generator, steps: Sequence[int]) -> np.ndarray:
    away = 60 * np.minimum(np.array(steps) / steps[1], 1)[:, None] * rng.standard_normal(900)
    return np.asarray(straight(rng, steps) + away)


def write_run(root: Path, weights: Weights, steps: Sequence[int], dtype: str = "float32") -> Path:
    """``root`` with a folder for each step."""
    for step, row in zip(steps, weights(np.random.default_rng(5), steps), strict=True):
        folder = root / f"step_{step}"
        folder.mkdir(parents=True)
        save_file({"w": row.reshape(30, 30).astype(dtype)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    return root


def hubextrap(*arguments: str | Path, at: Path) -> subprocess.CompletedProcess[str]:
    """`hubextrap` as a process of its own, in the folder ``at``."""
    return subprocess.run(
        [sys.executable, "-m", "hubextrap", *map(str, arguments)],
        cwd=at,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
