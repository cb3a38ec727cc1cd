from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hubextrap.localhub import LocalHub

SHARDS = 3


def write_checkpoint(folder: Path, step: int, shards: int = SHARDS) -> Path:
    """A model of a few kilobytes in so many files, on a line."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    files = {}
    names = [f"layers.{number}.weight" for number in range(6)]
    weights = {name: rng.standard_normal((12, 9)) * (1 + 0.01 * step) for name in names}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = {name: weights[name].astype("float32") for name in names[number::shards]}
        save_file(held, folder / file)
        files |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three checkpoints as folders."""
    for step in (0, 10, 20):
        write_checkpoint(tmp_path / "run" / f"step_{step}", step)
    return tmp_path / "run"


@pytest.fixture
def recipe(run: Path, tmp_path: Path) -> Path:
    """Two targets from it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: [30, 40]}}\n"
    )
    return path


@pytest.fixture
def hub_recipe(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A recipe of a run on the Hub whose base is one file, part of every shard; and a repo to push to.

    The token is in the environment.
    """
    monkeypatch.setenv("HF_TOKEN", "hf_" + "testtoken" * 3)
    repo = f"me/run-{uuid.uuid4().hex[:8]}"
    hub.create_repo(repo)
    for step in (0, 10, 20):
        folder = write_checkpoint(tmp_path / "on-hub" / f"{step}", step, shards=SHARDS if step else 1)
        hub.commit(repo, {file.name: file for file in folder.iterdir()}, revision=f"step_{step}")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"trajectory: {{repo: {repo}}}\nmerge_method: two_point\n"
        "parameters: {target_step: 40, base_step: 0}\n"
    )
    return path, f"me/predicted-{uuid.uuid4().hex[:8]}"
