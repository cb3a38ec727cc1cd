"""Runs in pieces whose prediction would load nowhere, or not as it looks: plan and merge say so alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from torch_pickles import Name, pickle_of, tensor, zip_of

import hubextrap
from hubextrap import api
from hubextrap.cli.passed_on import _refuse_folders_in_pieces
from hubextrap.errors import HubExtrapError, UnsupportedCheckpoint
from hubextrap.trajectory import find_trajectory

STEPS = (10, 20, 30)
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
PLAIN = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
Write = Callable[..., Path]


def rank_file(names: tuple[str, ...], step: int, *, wide: bool = False) -> bytes:
    """What the one rank of a trainer without sharding would save."""
    kind = Name("torch", "FloatStorage" if wide else "BFloat16Storage")
    values = (np.arange(8, dtype=np.float32) * (1 + step / 100)).view(np.uint32)
    data = values.tobytes() if wide else (values >> 16).astype(np.uint16).tobytes()
    state: dict[str, Any] = {name: tensor(str(key), (4, 2), kind=kind) for key, name in enumerate(names)}
    records = {"data.pkl": pickle_of(state)}
    return zip_of(records | {f"data/{key}": data for key in range(len(names))})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(
        names: tuple[str, ...] = PLAIN,
        config: Mapping[str, object] | None = CONFIG,
        *,
        wide: bool = False,
    ) -> Path:
        for step in STEPS:
            folder = tmp_path / "run" / f"global_step_{step}" / "actor"
            (folder / "huggingface").mkdir(parents=True)
            (folder / "model_world_size_1_rank_0.pt").write_bytes(rank_file(names, step, wide=wide))
            if config is not None:
                (folder / "huggingface" / "config.json").write_text(json.dumps(config))
        return tmp_path / "run"

    return run


def recipe_of(run: Path) -> Path:
    file = run.parent / "recipe.yaml"
    file.write_text(
        f"trajectory: {{repo: '{run}'}}\nmerge_method: two_point\nparameters: {{target_step: 40}}\n"
    )
    return file


def refused_alike(run: Path) -> str:
    """What merge refuses a run with, which plan says too."""
    recipe = recipe_of(run)
    with pytest.raises(HubExtrapError) as told:
        hubextrap.merge(recipe, out=run.parent / "out")
    assert api.plan(recipe).problems == (str(told.value),)
    assert not (run.parent / "out").exists()
    return str(told.value)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return set(file.keys())


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_wrappers_in_all_names_are_not_written(wrapper: str, write: Write) -> None:
    """As save_pretrained writes none; transformers would load a random model of them, and warn."""
    run = write(tuple(wrapper + name for name in PLAIN))
    hubextrap.merge(recipe_of(run), out=run.parent / "out")
    assert names_in(run.parent / "out") == set(PLAIN)


def test_names_that_would_be_one_stay(write: Write) -> None:
    names = (*PLAIN, f"module.{PLAIN[0]}")
    run = write(names)
    hubextrap.merge(recipe_of(run), out=run.parent / "out")
    assert names_in(run.parent / "out") == set(names)


def test_adapters_in_the_ranks_files(write: Write) -> None:
    of_peft = "base_model.model.model.layers.0.self_attn.q_proj."
    run = write((f"{of_peft}base_layer.weight", f"{of_peft}lora_A.default.weight"))
    said = refused_alike(run)
    assert "global_step_10/actor: tensor 'base_model" in said  # whose file is no file
    assert "python -m verl.model_merger merge --backend fsdp --local_dir FOLDER" in said
    assert "lora_adapter" in said


def test_no_configuration(write: Write) -> None:
    said = refused_alike(write(config=None))
    assert "global_step_30/actor: no config.json" in said
    assert "copy config.json and the tokenizer files of the base model into it" in said


def test_float32_of_a_model_in_16_bits(write: Write) -> None:
    recipe = recipe_of(write(wide=True))
    note = "stores float32, and config.json has it loaded as bfloat16"
    assert any(note in line for line in api.plan(recipe).notes)
    recipe.write_text(f"{recipe.read_text()}out_dtype: bfloat16\n")
    assert not any(note in line for line in api.plan(recipe).notes)


def test_what_mergekit_is_given(write: Write) -> None:
    last = write() / "global_step_30" / "actor"
    with pytest.raises(UnsupportedCheckpoint, match=r"FSDP shards.* hubextrap merge step-30\.yaml"):
        _refuse_folders_in_pieces({"base_model": "me/base", "models": [{"model": str(last)}]})


@pytest.mark.slow
def test_names_of_torchtitan(tmp_path: Path) -> None:
    """Its own model code loads them, and no configuration of transformers: but scans take them."""
    import torch
    from torch_runs import write_dcp

    for step in STEPS:
        state = {"tok_embeddings.weight": torch.full((4, 2), step), "output.weight": torch.randn(4, 2)}
        folder = tmp_path / "run" / "checkpoint" / f"step-{step}"
        write_dcp(folder, {name: one.bfloat16() for name, one in state.items()}, 2, prefix="")
        (folder / "config.json").write_text(json.dumps(CONFIG))
    said = refused_alike(tmp_path / "run")
    assert "checkpoint/step-30: tensor 'tok_embeddings.weight' goes by torchtitan's own name" in said
    assert "python scripts/checkpoint_conversion/convert_to_hf.py FOLDER FOLDER-hf" in said
    assert api.scan(find_trajectory(str(tmp_path / "run")), sample="exact").steps == STEPS
