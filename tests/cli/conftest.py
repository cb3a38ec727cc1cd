"""Small things for every command to work on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from command_lines import REGROUND, Ended, Ground, run_main
from tiny_llama import save_tiny, tiny_llama

from hubextrap.localhub import LocalHub

STEPS = (0, 10, 20, 30)


@pytest.fixture(scope="session")
def _ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    root = tmp_path_factory.mktemp("ground")
    model = tiny_llama()
    for step in STEPS:
        save_tiny(model, root / "run" / f"step_{step}")
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn_like(weight)
    (root / "problems.jsonl").write_text(json.dumps({"question": "1+9=", "answer": "01"}) + "\n")
    (root / "prompts.txt").write_text("1+9=\n")
    (root / "not_a_recipe.yaml").write_text("- 1\n")
    ground = Ground(root, "")
    ground.recipe()
    ground.recipe("logits.yaml", space="logits")
    ground.recipe("evaluate.yaml", evaluate={"task_files": "problems.jsonl"})
    (root / "reground.yaml").write_text(yaml.safe_dump({"reground": REGROUND}, sort_keys=False))
    watched = {"trajectory": {"repo": "run"}, "watch": {"every": 2}}
    (root / "watch.yaml").write_text(yaml.safe_dump(watched))
    with _current(root):
        for arguments in (
            ("scan", "run", "--out", "scan.safetensors", "-q"),
            ("merge", "recipe.yaml", "--out", "merged", "-q"),
        ):
            ended = run_main(*arguments)
            assert ended.code == 0, ended
    return root


@pytest.fixture
def ground(
    _ground: Path,
    hub: LocalHub,
    repo_id: str,
    token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Ground:
    """A copy that a test may change, and the current folder; user "me" is logged in to the Hub."""
    folder = Path(shutil.copytree(_ground, tmp_path / "ground"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", token)
    return Ground(folder, repo_id)


@contextmanager
def _current(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


Cli = Callable[..., Ended]


@pytest.fixture
def cli(ground: Ground) -> Cli:
    return run_main
