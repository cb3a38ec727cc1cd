"""The same bytes as mergekit 0.1.5, run as its users run it, on whole models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def run_mergekit(folder: Path, config: dict[str, Any]) -> Tensors:
    """What mergekit writes for a config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own: deprecated names in numpy and transformers
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(config), str(folder), options)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def linear(folders: Sequence[Path], coefficients: Sequence[float], out_dtype: str) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [
            {"model": str(folder), "parameters": {"weight": weight}}
            for folder, weight in zip(folders, coefficients, strict=True)
        ],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": out_dtype,
    }


def task_arithmetic(base: Path, last: Path, alpha: float, out_dtype: str) -> dict[str, Any]:
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(last), "parameters": {"weight": alpha}}],
        "dtype": "float32",
        "out_dtype": out_dtype,
    }


def assert_same_bits(ours: Tensors, theirs: Tensors) -> None:
    assert set(ours) <= set(theirs), "mergekit may write a tied head twice; what we write it writes too"
    assert set(theirs) - set(ours) <= {"lm_head.weight"}
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


MODELS = {
    "sharded": {"architecture": "llama", "shard": "60KB", "dtypes": ["bfloat16"] * 4},
    "biases": {"architecture": "qwen2", "shard": "5GB", "dtypes": ["bfloat16"] * 4},
    "tied": {"architecture": "qwen2", "shard": "60KB", "dtypes": ["float32"] * 4, "tied": True},
    "mixed": {
        "architecture": "llama",
        "shard": "60KB",
        "dtypes": ["float32", "bfloat16", "float16", "bfloat16"],
    },
}


@pytest.fixture(scope="module", params=MODELS)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four random tiny models as save_pretrained writes them."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    choice = MODELS[request.param]
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # attention biases
    }[str(choice["architecture"])]
    config = config_class(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=199,
        tie_word_embeddings=bool(choice.get("tied", False)),
    )
    root = tmp_path_factory.mktemp(str(request.param))
    folders = []
    for k, dtype in enumerate(choice["dtypes"]):
        torch.manual_seed(k)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)  # norms and biases too, which start at 1 and 0
        model.to(getattr(torch, dtype)).save_pretrained(root / f"{k}", max_shard_size=choice["shard"])
        folders.append(root / f"{k}")
    assert (len(list(folders[-1].glob("*.safetensors"))) > 1) is (choice["shard"] != "5GB")
    return folders


def is_tied(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_text())["tie_word_embeddings"])


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_line_is_task_arithmetic(
    checkpoints: list[Path], out_dtype: str, merge: Callable[..., Any], tmp_path: Path
) -> None:
    base, last = checkpoints[0], checkpoints[-1]
    ours = merge([base, last], [1 - 1.43, 1.43], out_dtype=out_dtype, tied=is_tied(last))
    theirs = run_mergekit(tmp_path / "mergekit", task_arithmetic(base, last, 1.43, out_dtype))
    assert_same_bits(ours.tensors(), theirs)


def test_sum_is_linear(checkpoints: list[Path], merge: Callable[..., Any], tmp_path: Path) -> None:
    row = [-0.35, -0.15, 0.2, 1.3]
    ours = merge(checkpoints, row, out_dtype="bfloat16", tied=is_tied(checkpoints[-1]))
    theirs = run_mergekit(tmp_path / "mergekit", linear(checkpoints, row, "bfloat16"))
    assert_same_bits(ours.tensors(), theirs)


def test_transformers_loads_the_output(checkpoints: list[Path], merge: Callable[..., Any]) -> None:
    from transformers import AutoModelForCausalLM

    last = checkpoints[-1]
    merged = merge(checkpoints, [-0.35, -0.15, 0.2, 1.3], tied=is_tied(last))
    (merged.folders[0] / "config.json").write_bytes((last / "config.json").read_bytes())
    if merged.plan.index_file:
        (merged.folders[0] / merged.plan.index_file).write_bytes(merged.plan.index)
    model, info = AutoModelForCausalLM.from_pretrained(merged.folders[0], output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in merged.tensors().items():
        assert torch.equal(model.state_dict()[name], tensor.to(model.dtype))


def test_real_trajectory(demo_data: Path, merge: Callable[..., Any], tmp_path: Path) -> None:
    """Predicting step 400 from steps 0 to 200 of a GRPO run: two_point from step 100, and least squares."""
    compare_on(demo_data / "rlvr-C", 400, merge, tmp_path, steps=[0, 40, 100, 200])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["rlvr-A", "rlvr-C"])
def test_whole_trajectories(rlvr: Path, run: str, merge: Callable[..., Any], tmp_path: Path) -> None:
    steps = sorted(int(path.name.removeprefix("step_")) for path in (rlvr / run).glob("step_*"))
    compare_on(rlvr / run, 625, merge, tmp_path, steps=steps)


def compare_on(
    data: Path, target: int, merge: Callable[..., Any], tmp_path: Path, *, steps: list[int]
) -> None:
    from hubextrap.methods.lines import least_squares

    folders = [data / f"step_{step}" for step in steps]
    alpha = (target - steps[-2]) / (steps[-1] - steps[-2])
    ours = merge(folders[-2:], [1 - alpha, alpha], out_dtype="bfloat16")
    theirs = run_mergekit(tmp_path / "line", task_arithmetic(*folders[-2:], alpha, "bfloat16"))
    assert_same_bits(ours.tensors(), theirs)
    row = least_squares(steps, target).tolist()
    ours = merge(folders, row, out_dtype="bfloat16")
    theirs = run_mergekit(tmp_path / "sum", linear(folders, row, "bfloat16"))
    assert_same_bits(ours.tensors(), theirs)
