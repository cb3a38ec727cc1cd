"""What each name in an adapter's file says."""

from __future__ import annotations

import time

import pytest

from hubextrap.adapters.names import Part, part_of, peft_name
from hubextrap.errors import UnsupportedCheckpoint

LAYER = "model.layers.0."
PREFIXES = (
    *("base_model.model.", "", "base_model.model._orig_mod.", "module.base_model.model."),
    *("_forward_module.base_model.model.", "module._orig_mod.base_model.model.", "module."),
)
"""What peft and trainers put ahead of the base's own names."""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("self_attn.q_proj.lora_A.weight", Part(f"{LAYER}self_attn.q_proj", "A")),
        ("self_attn.q_proj.lora_B.default.weight", Part(f"{LAYER}self_attn.q_proj", "B")),
        ("self_attn.q_proj.lora_B.default.bias", Part(f"{LAYER}self_attn.q_proj", "bias")),
        ("emb.lora_embedding_A", Part(f"{LAYER}emb", "A", embedding=True)),
        ("emb.lora_embedding_B.default", Part(f"{LAYER}emb", "B", embedding=True)),
        ("emb.base_layer.weight", Part(f"{LAYER}emb", "base")),
        ("mlp.experts.lora_A.weight", Part(f"{LAYER}mlp.experts", "A")),
        ("mlp.experts.base_layer.lora_A.weight", Part(f"{LAYER}mlp.experts", "A", depth=1)),
        ("mlp.experts.base_layer.base_layer.lora_B.weight", Part(f"{LAYER}mlp.experts", "B", depth=2)),
        ("self_attn.q_proj.base_layer.bias", Part(f"{LAYER}self_attn.q_proj.bias", "whole")),
        ("norm.weight", Part(f"{LAYER}norm.weight", "whole")),
        ("norm.modules_to_save.weight", Part(f"{LAYER}norm.weight", "whole")),
        ("norm.modules_to_save.default.weight", Part(f"{LAYER}norm.weight", "whole")),
        ("norm.original_module.weight", Part(f"{LAYER}norm.original_module.weight", "unused")),
    ],
)
def test_parts(name: str, part: Part) -> None:
    for prefix in PREFIXES:
        assert part_of(f"{prefix}{LAYER}{name}", "file") == part


@pytest.mark.parametrize(
    "name",
    [
        "lora_A.weight",
        "a.lora_A.bias",
        "a.lora_A",
        "a.lora_A.x.y.weight",
        "a.lora_embedding_A.weight",
        "a.base_layer.out_proj.lora_A.weight",
        "a.modules_to_save.default.lora_A.weight",
        "a.lora_magnitude_vector",
        "a.lora_E",
        "a.vera_lambda_b",
        "prompt_embeddings",
    ],
)
def test_parts_of_something_else(name: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="no plain LoRA") as caught:
        part_of(name, "step_1/adapter_model.safetensors")
    assert caught.value.tensor == name


def test_long_names_take_no_time() -> None:
    start = time.process_time()
    for pump in (".lora_A", "lora_A.", "base_layer.", "_orig_mod.", "base_model.model.", "a", "."):
        with pytest.raises(Exception, match=r"characters|no plain LoRA"):
            part_of(pump * 200_000, "file")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("q_proj.lora_A.weight", "q_proj.lora_A.weight"),
        ("q_proj.lora_A.default.weight", "q_proj.lora_A.weight"),
        ("q_proj.lora_B.default.bias", "q_proj.lora_B.bias"),
        ("experts.base_layer.lora_B.some.weight", "experts.base_layer.lora_B.weight"),
        ("emb.lora_embedding_A", "emb.lora_embedding_A"),
        ("emb.lora_embedding_B.default", "emb.lora_embedding_B"),
        ("q_proj.base_layer.bias", "q_proj.base_layer.bias"),
        ("norm.modules_to_save.default.weight", "norm.weight"),
        ("norm.modules_to_save.weight", "norm.weight"),
    ],
)
def test_a_prediction_is_named_as_peft_looks_for_it(written: str, found: str) -> None:
    for prefix in PREFIXES:
        name = f"{prefix}{LAYER}{written}"
        assert peft_name(name) == f"base_model.model.{LAYER}{found}"
        assert part_of(name, "file") == part_of(peft_name(name), "file")
