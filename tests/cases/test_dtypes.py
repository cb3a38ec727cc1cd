"""What a BF16 model keeps in F32, and indices that say too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from case_runs import Tensors, random, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from safetensors.torch import load_file

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def routed(step: int) -> Tensors:
    """A BF16 model whose 256 experts are chosen with F32 biases that BF16 could not tell apart."""
    bias = 6.817 + 0.246 * torch.rand(256, generator=torch.Generator().manual_seed(5)) + step * 1e-6
    return {**tiny(step), BIAS: bias, "model.layers.1.mlp.gate.weight": random(6, 256, 4).bfloat16()}


@pytest.mark.parametrize("out_dtype", [None, "bfloat16", "float16"])
def test_router_biases_stay_in_f32(tmp_path: Path, cli: Callable[..., Ended], out_dtype: str | None) -> None:
    """sgl-project/sglang#37133: cast to BF16, 238 biases become 8, and most tokens go to other experts."""
    run = write_run(tmp_path / "run", tensors=routed)
    recipe = recipe_for(run, tmp_path / "r.yaml", **({"out_dtype": out_dtype} if out_dtype else {}))
    planned, out = cli("plan", recipe, "--out", tmp_path / "out"), tmp_path / "out"
    assert cli("merge", recipe, "--out", out).code == 0
    made = load_file(out / "model.safetensors")
    expected = 2 * routed(200)[BIAS].double() - routed(100)[BIAS].double()
    assert made[BIAS].dtype == torch.float32
    assert (made[BIAS] - expected).abs().max() < 1e-6
    assert made["lm_head.weight"].dtype == getattr(torch, out_dtype or "bfloat16")
    said = (
        "out_dtype does not narrow what the last checkpoint keeps wider than the rest, in F32: 1 of 6 tensors"
    )
    for text in (planned.out, (out / "README.md").read_text()):
        assert (said in text) is (out_dtype is not None)


@pytest.mark.parametrize("first", ["a", "z"])
def test_of_two_dtypes_that_are_level_that_of_most_bytes_is_the_models(
    tmp_path: Path, cli: Callable[..., Ended], first: str
) -> None:
    """Whichever tensor comes first."""

    def half(step: int) -> Tensors:
        return {first: random(step, 4), "m": random(step, 16).bfloat16()}

    run = write_run(tmp_path / "run", tensors=half)
    recipe = recipe_for(run, tmp_path / "r.yaml", out_dtype="bfloat16")
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert [made[first].dtype, made["m"].dtype] == [torch.float32, torch.bfloat16]


def test_a_model_of_f32_alone_is_narrowed_and_that_is_said(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    run = write_run(tmp_path / "run", tensors=lambda step: tiny(step, torch.float32))
    recipe = recipe_for(run, tmp_path / "r.yaml", out_dtype="bfloat16")
    assert "out_dtype: bfloat16 narrows 4 of 4 tensors" in cli("plan", recipe, "--out", tmp_path / "out").out
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert {one.dtype for one in made.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("out_dtype", [None, "float32"])
def test_an_index_is_made_for_what_is_written(
    tmp_path: Path, cli: Callable[..., Ended], out_dtype: str | None
) -> None:
    """huggingface/transformers#38531, hiyouga/LlamaFactory#10496: figures of another model in the index."""
    shard, index_file = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
    for step in (100, 200):
        tensors = {**tiny(step), "model.layers.0.mlp.experts.gate_up_proj": torch.ones(2, 4, 4)}
        index = {
            "metadata": {"total_parameters": 3054832, "total_size": 54713457120},
            "weight_map": dict.fromkeys(tensors, shard),
        }
        write_model(
            tmp_path / f"run/step_{step}", tensors, beside={index_file: json.dumps(index)}, file=shard
        )
    sections = {"out_dtype": out_dtype} if out_dtype else {}
    recipe = recipe_for(tmp_path / "run", tmp_path / "r.yaml", **sections)
    assert cli("merge", recipe, "--out", tmp_path / "out").code == 0
    made = load_file(tmp_path / "out" / shard)
    written = json.loads((tmp_path / "out" / index_file).read_bytes())
    assert written["metadata"] == {"total_size": sum(one.nbytes for one in made.values())}
    assert written["weight_map"] == dict.fromkeys(made, shard)
