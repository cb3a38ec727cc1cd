"""Folders that look like whole models and hold an adapter's factors, or are whole beside adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from case_runs import random, tiny, write_model, write_run
from command_lines import Ended
from safetensors.torch import save_file

LAYER = "base_model.model.model.layers.0.mlp.down_proj."


def wrapped(step: int) -> dict[str, torch.Tensor]:
    """A whole model that peft still wraps, as verl's hf_model has it."""
    return {
        "base_model.model.model.embed_tokens.weight": random(0, 8, 4).bfloat16(),
        "base_model.model.lm_head.weight": random(1, 8, 4).bfloat16(),
        f"{LAYER}base_layer.weight": random(2, 4, 4).bfloat16(),
        f"{LAYER}lora_A.default.weight": random(3, 2, 4) * (1 + step / 100),
        f"{LAYER}lora_B.default.weight": random(4, 4, 2) * step / 100,
    }


def test_a_model_that_peft_still_wraps(tmp_path: Path, refused: Callable[..., str]) -> None:
    """verl-project/verl#4761: a line through A and one through B is no line through B·A."""
    run = write_run(tmp_path / "run", tensors=wrapped, name="global_step_{step}/actor/huggingface")
    for step in (100, 200):
        actor = run / f"global_step_{step}" / "actor"
        (actor / "lora_adapter").mkdir()
        factors = {"base_model.model.x.lora_A.weight": torch.ones(2, 4)}
        save_file(factors, actor / "lora_adapter" / "adapter_model.safetensors")
        (actor / "lora_adapter" / "adapter_config.json").write_text("{}")
    said = refused(run)
    assert "is part of an adapter or of a model wrapped in one, like 5 of 5 tensors" in said
    assert "lora_adapter" in said


def test_adapters_of_steps_beside_a_merged_model(
    tmp_path: Path, cli: Callable[..., Ended], refused: Callable[..., str]
) -> None:
    """axolotl-ai-cloud/axolotl#1391: the steps are adapters, the folder around them is a whole model."""
    run = write_model(tmp_path / "trained", tiny(2390), beside={"adapter_config.json": "{}"})
    for step in (1195, 2390):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({name: random(step, 2, 4)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "org/base", "r": 2})
        )
        for file in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin"):
            torch.save({}, folder / file)
    listed = cli("steps", run)
    assert "1195" in listed.out
    assert "2390" in listed.out
    said = refused(run, 3000)
    assert "checkpoint-1195/adapter_config.json: names no peft_type" in said
    assert "merge_and_unload()" in said
