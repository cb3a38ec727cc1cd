"""Trajectories on disk and on the Hub for tests of the whole chain, and the CLI as a user runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hubextrap.cli.app import app
from hubextrap.errors import HubExtrapError
from hubextrap.localhub import LocalHub

STEPS = (0, 10, 20, 30)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run `hubextrap` in this process, errors printed as its `main` prints them."""

    def run(*arguments: str | Path) -> Result:
        outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(outcome.exception, HubExtrapError):
            return Result(1, outcome.stdout, f"{outcome.stderr}error: {outcome.exception}\n")
        if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return Result(outcome.exit_code, outcome.stdout, outcome.stderr)

    return run


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that drifts: folders step_0 … step_30, bf16, sharded, as `save_pretrained` writes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("run")
    tokenizer = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C" / "step_0"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=28,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for step in STEPS:
        folder = root / f"step_{step}"
        model.save_pretrained(folder, max_shard_size="20KB")
        for file in tokenizer.glob("*token*"):
            shutil.copy(file, folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn_like(weight)
    return root


@pytest.fixture
def on_hub(hub: LocalHub, repo_id: str) -> Callable[..., str]:
    """Put folders on the Hub as branches of a fresh repo; returns its name."""

    def put(root: Path, **settings: bool) -> str:
        hub.create_repo(repo_id, **settings)
        for folder in sorted(root.glob("step_*")):
            files = {path.name: path for path in sorted(folder.iterdir())}
            hub.commit(repo_id, files, revision=folder.name, message=folder.name)
        return repo_id

    return put


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe: two_point to step 60 of ``repo``, sections replaced or added by keyword."""

    def write(repo: str | Path, **sections: object) -> Path:
        content: dict[str, object] = {
            "trajectory": {"repo": str(repo)},
            "merge_method": "two_point",
            "parameters": {"target_step": 60},
            "out_dtype": "bfloat16",
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content | sections, sort_keys=False))
        return path

    return write


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch, token: str) -> str:
    """HF_TOKEN holds a write token of user "me"."""
    monkeypatch.setenv("HF_TOKEN", token)
    return token
