"""What `verify` passes is what transformers loads, to the last bit; what it would load instead is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hubextrap
from hubextrap.recipe import load_recipe


@pytest.fixture(scope="module")
def made(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verified")
    recipe = place / "recipe.yaml"
    recipe.write_text(
        f"trajectory: {{repo: '{checkpoints}'}}\nmerge_method: two_point\nparameters: {{target_step: 60}}\n"
    )
    hubextrap.merge(load_recipe(recipe), out=place / "out")
    return place / "out"


@pytest.fixture
def prediction(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "prediction")


def shards(folder: Path) -> dict[str, torch.Tensor]:
    named = json.loads((folder / "hubextrap.json").read_bytes())["shards"]
    return {name: tensor for shard in named for name, tensor in load_file(folder / shard["file"]).items()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return dict(model.state_dict())


def is_as_verified(folder: Path) -> bool:
    ours, theirs = shards(folder), loaded(folder)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def everything(folder: Path) -> None:
    save_file(
        {name: torch.zeros_like(tensor) for name, tensor in shards(folder).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def adapter(folder: Path) -> None:
    """A LoRA as peft writes it; transformers puts it on the weights of the folder that it is found in."""
    config = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(folder),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    base = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{base}.lora_A.weight": torch.ones(2, 32), f"{base}.lora_B.weight": torch.ones(32, 2)}
    save_file(factors, folder / "adapter_model.safetensors")


def renamed(folder: Path) -> None:
    everything(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


def documents(folder: Path) -> None:
    for name in ("notes.md", "weights.json", "plot.png", "LICENSE", "trainer_state.json", "x/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")


def pickle(folder: Path) -> None:
    torch.save(
        {name: torch.zeros_like(t) for name, t in shards(folder).items()}, folder / "pytorch_model.bin"
    )


@pytest.mark.parametrize("plant", [lambda folder: None, documents])
def test_what_is_verified_is_loaded(prediction: Path, plant: Callable[[Path], None]) -> None:
    plant(prediction)
    assert hubextrap.verify(prediction).problems == ()
    assert is_as_verified(prediction)


@pytest.mark.parametrize("plant", [everything, adapter, renamed, pickle])
def test_what_may_be_loaded_instead_is_refused(prediction: Path, plant: Callable[[Path], None]) -> None:
    plant(prediction)
    assert hubextrap.verify(prediction).problems
    if plant is everything:  # so it is no idle worry
        assert not is_as_verified(prediction)
