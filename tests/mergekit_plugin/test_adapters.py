"""LoRA adapters, ``base+adapter``: mergekit merges each into its base, and our methods combine those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

STEPS = {10: "ten", 20: "twenty"}


@pytest.fixture
def adapters(sharded: Path, tmp_path: Path) -> Path:
    """Folders `ten` and `twenty` of a LoRA of rank 2 on the query projections of the random Llama."""
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(sharded / "step_0", dtype=torch.float32)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config)
    for folder in STEPS.values():
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight += 0.05 * torch.randn_like(weight)
        wrapped.save_pretrained(tmp_path / folder)
    (tmp_path / "sft-step-500").symlink_to(sharded / "step_0")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what mergekit and peft import
def test_mergekit_hands_over_merged_models(
    adapters: Path,
    through_mergekit: Callable[..., dict[str, torch.Tensor]],
    natively: Callable[..., dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the base's name says is no step of the adapters; and `hubextrap merge` makes the same model."""
    monkeypatch.chdir(adapters)
    base = Path("sft-step-500")
    config: dict[str, Any] = {
        "merge_method": "two_point",
        "base_model": str(base),
        "models": [
            {"model": f"{base}+{folder}", "parameters": {"step": step}} for step, folder in STEPS.items()
        ],
        "parameters": {"target_step": 40, "base_step": 10},
        "dtype": "float32",
    }
    merging = ["--lora-merge-cache", "cache", "--lora-merge-dtype", "float32"]
    predicted = through_mergekit(config, *merging)
    ours = natively(config)
    assert ours.keys() == predicted.keys()

    before = {name: t for file in base.glob("*.safetensors") for name, t in load_file(file).items()}
    deltas = []
    for folder in STEPS.values():
        stored = load_file(Path(folder, "adapter_model.safetensors"))
        deltas.append(
            {
                name.removeprefix("base_model.model.").replace(".lora_A", ""): 3.0
                * (stored[name.replace("lora_A", "lora_B")].double() @ stored[name].double())
                for name in stored
                if "lora_A" in name
            }
        )
    assert len(deltas[0]) == 2
    for name, tensor in predicted.items():
        known = before[name].double()
        if name in deltas[0]:
            known += 3.0 * deltas[1][name] - 2.0 * deltas[0][name]  # steps 10 and 20, read at 40
        torch.testing.assert_close(tensor.double(), known, rtol=0, atol=2e-7)
        assert torch.equal(ours[name], known.float()), "the formula, rounded once"
