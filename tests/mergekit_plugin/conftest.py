"""mergekit in this process, and the two ways to carry out one config."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

with warnings.catch_warnings():
    # mergekit and what it imports; nothing that its callers could change
    warnings.simplefilter("ignore")
    with suppress(ModuleNotFoundError):  # without it, the tests here are skipped
        import mergekit.scripts.run_yaml  # noqa: F401

        import hubextrap.mergekit_plugin

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hubextrap.cli.app import app

STEPS = (0, 10, 25, 30)
Config = dict[str, Any]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def config_of() -> Callable[..., Config]:
    """A plain mergekit config: step_0 is base_model, the others are listed last to first."""

    def build(root: Path, method: str, **parameters: object) -> Config:
        steps = sorted((int(folder.name[5:]) for folder in root.glob("step_*")), reverse=True)
        return {
            "merge_method": method,
            "base_model": str(root / "step_0"),
            "models": [
                {"model": str(root / f"step_{step}"), "parameters": {"step": step}} for step in steps[:-1]
            ],
            "parameters": {"target_step": 2 * steps[0], **parameters},
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }

    return build


def read_weights(folder: Path) -> Weights:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.fixture
def weights_in() -> Callable[[Path], Weights]:
    """All tensors of a folder."""
    return read_weights


@pytest.fixture
def assert_same_bits() -> Callable[[Weights, Weights], None]:
    def check(one: Weights, other: Weights) -> None:
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype, name
            assert tensor.shape == other[name].shape, name
            assert torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)), name

    return check


@pytest.fixture
def through_mergekit(tmp_path: Path) -> Callable[..., Weights]:
    """Run `hubextrap mergekit-yaml` in this process; what it raises, it raises here."""

    def run(config: Config, *options: str) -> Weights:
        out = tmp_path / "by_mergekit"
        path = tmp_path / "mergekit.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        outcome = CliRunner().invoke(
            app, ["mergekit-yaml", str(path), str(out), "--quiet", *options], catch_exceptions=False
        )
        assert outcome.exit_code == 0, outcome.output
        return read_weights(out)

    return run


@pytest.fixture
def natively(tmp_path: Path) -> Callable[..., Weights]:
    """Run `hubextrap merge` on the same file."""

    def run(config: Config) -> Weights:
        out = tmp_path / "by_us"
        path = tmp_path / "native.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        hubextrap.merge(hubextrap.load_recipe(path), out=out)
        return read_weights(out)

    return run


def _run_of_a_model(root: Path, dtype: torch.dtype, **settings: object) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=28,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    model = LlamaForCausalLM(config).to(dtype)
    for step in STEPS:
        model.save_pretrained(root / f"step_{step}", max_shard_size="20KB")
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn_like(weight)
    return root


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders step_0 … step_30 of a random Llama: bf16, several shards, untied."""
    return _run_of_a_model(tmp_path_factory.mktemp("sharded"), torch.bfloat16, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tied embeddings, stored once."""
    return _run_of_a_model(tmp_path_factory.mktemp("tied"), torch.bfloat16, tie_word_embeddings=True)
