"""Rounds of a trainer that trains an adapter: it is handed one to go on with, near those that it left."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from tiny_llama import save_tiny, tiny_llama
from transformers import AutoModelForCausalLM

from hubextrap import api
from hubextrap.api.verifying import verify
from hubextrap.errors import CheckpointError, CheckpointMismatch, NonFinite, RecipeError
from hubextrap.progress import SilentProgress
from hubextrap.recipe import load_reground_recipe
from hubextrap.regrounding.checkpoint import check_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft's
]
TRAINER = Path(__file__).with_name("lora_trainer.py")
STEPS, JUMP = 4, 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_tiny(tiny_llama(), folder)
    return folder


@pytest.fixture(scope="module")
def train(base: Path) -> list[str]:
    """The trainer's command; what it begins with is of two projections, a table, and a head that is whole."""
    untrained = base.parent / "untrained"
    wanted = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft saves the table too, for one
        model = AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **wanted)).save_pretrained(str(untrained))
    given = [
        "--untrained",
        str(untrained),
        "--model",
        "{model}",
        "--steps",
        "{steps}",
        "--output",
        "{output}",
    ]
    return [sys.executable, str(TRAINER), *given]


def delta(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What an adapter changes of the base, as peft merges it in float64."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    return {name: (merged[name] - before[name]).numpy() for name in before}


@pytest.mark.parametrize("rule", ["two_point", "calibrated"])
def test_rounds_of_adapters_jump_in_their_products(
    setting: Callable[..., Any], base: Path, train: list[str], rule: str
) -> None:
    found = setting(model=str(base), train=train, jump=JUMP, iterations=3, rule=rule)
    result = api.reground(load_reground_recipe(found.recipe), found.out)
    first, second, last = result.decisions
    assert (second.action, last.action) == ("jumped", "skipped")
    assert result.model == found.out / "round-003" / "output" / "checkpoint-4"
    trained = [delta(base, found.out / f"round-00{n}" / "output" / "checkpoint-4") for n in (1, 2)]
    place = found.out / "round-002" / "extrapolated"
    assert not verify(place).problems
    landed = delta(base, place)
    zero = {name: np.zeros_like(one) for name, one in trained[0].items()}
    known = {0: zero, STEPS: trained[0], second.represented_steps - second.n_used: trained[1]}
    if first.action == "jumped":
        known[first.represented_steps] = delta(base, found.out / "round-001" / "extrapolated")
    assert second.coefficients is not None
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"):
        row = second.coefficients.get(name, second.coefficients.get("*"))
        assert row is not None
        expected = sum(c * known[step][name] for step, c in zip(second.snapshot_steps, row, strict=True))
        assert np.linalg.norm(expected) > 1.05 * np.linalg.norm(trained[1][name])
        # rank 4 of the sum's 8 or more
        assert np.linalg.norm(landed[name] - expected) < 0.02 * np.linalg.norm(expected)
    config = json.loads((place / "adapter_config.json").read_text())
    left = json.loads(
        (found.out / "round-002" / "output" / "checkpoint-4" / "adapter_config.json").read_text()
    )
    assert config == left
    a, old = (
        load_file(folder / "adapter_model.safetensors")[
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        ]
        for folder in (place, found.out / "round-002" / "output" / "checkpoint-4")
    )
    assert np.linalg.norm(a - old) < 0.1 * np.linalg.norm(old)
    recorded = json.loads((place / "hubextrap.json").read_text())["adapter"]
    assert recorded["output"] == "adapter"
    assert max(recorded["lost"].values(), default=0.0) < 0.01


class StopAtJump(SilentProgress):
    def say(self, text: str) -> None:
        if "jump of" in text:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_alike(
    setting: Callable[..., Any], base: Path, train: list[str], contents: Any
) -> None:
    found = setting(model=str(base), train=train, iterations=2)
    recipe = load_reground_recipe(found.recipe)
    with pytest.raises(KeyboardInterrupt):
        api.reground(recipe, found.out, progress=StopAtJump())
    cut = api.reground(recipe, found.out).decisions
    files = {number: contents(found.out / f"round-00{number}") for number in (1, 2)}
    shutil.rmtree(found.out)
    assert api.reground(recipe, found.out).decisions == cut
    for number, before in files.items():
        assert contents(found.out / f"round-00{number}") == before


def test_own_answers_judge_adapters_too(
    setting: Callable[..., Any], base: Path, train: list[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "1+2="}\n{"prompt": "3+4="}\n')
    guard = {"max_error": "off", "prompts": str(prompts), "max_tokens": 4}
    found = setting(model=str(base), train=train, iterations=2, jump=4000, guard=guard)
    first = api.reground(load_reground_recipe(found.recipe), found.out).decisions[0]
    assert first.own_answers_before is not None
    assert first.own_answers_after is None or first.own_answers_after < first.own_answers_before
    assert first.action == "rolled_back"


@pytest.mark.usefixtures("logged_in", "hub")
def test_adapters_become_branches(
    setting: Callable[..., Any], base: Path, train: list[str], repo_id: str
) -> None:
    found = setting(model=str(base), train=train, iterations=2, push={"repo": repo_id})
    api.reground(load_reground_recipe(found.recipe), found.out)
    for branch in ("real-rl4-step4", "extrapolated-rl4-step8", "real-rl8-step12"):
        files = set(HfApi().list_repo_files(repo_id, revision=branch))
        assert {"adapter_config.json", "adapter_model.safetensors"} <= files, branch
        assert "config.json" not in files


def test_what_has_no_effect_on_adapters_is_refused(
    setting: Callable[..., Any], base: Path, train: list[str]
) -> None:
    """Before any training, where the run starts from one."""
    untrained = base.parent / "untrained"
    found = setting(model=str(untrained), train=train, iterations=2)
    recipe = load_reground_recipe(found.recipe)
    with pytest.raises(RecipeError, match="--executor"):
        api.reground(recipe, found.out, settings=api.MergeOptions(executor="ray"))
    assert not (found.out / "round-001").exists()
    first = api.reground(recipe, found.out).decisions[0]
    assert first.action == "jumped"


def test_what_a_trainer_leaves_is_checked(
    setting: Callable[..., Any], base: Path, train: list[str], tmp_path: Path
) -> None:
    found = setting(model=str(base), train=train, iterations=1)
    api.reground(load_reground_recipe(found.recipe), found.out)
    stage: Any = SilentProgress().stage("check", None)
    adapter = found.out / "round-001" / "output" / "checkpoint-4"
    with stage as told:
        assert check_model(adapter, base, told).weights.keys() == {"adapter_model.safetensors"}
        with pytest.raises(
            CheckpointMismatch, match="is a whole model, but the round started from the adapter"
        ):
            check_model(base, adapter, told)
        other = tmp_path / "other"
        save_tiny(tiny_llama(hidden_size=24), other)
        with pytest.raises(
            CheckpointMismatch, match="is no adapter of the model that the round started from"
        ):
            check_model(adapter, other, told)
        config = adapter / "adapter_config.json"
        text = config.read_text()
        config.write_text(json.dumps(json.loads(text) | {"init_lora_weights": False}))
        with pytest.raises(CheckpointError, match="init_lora_weights"):
            check_model(adapter, base, told)
        config.write_text(text)
        weights = load_file(adapter / "adapter_model.safetensors")
        name = next(iter(weights))
        weights[name][0, 0] = np.nan
        save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(NonFinite, match="are NaN or infinite"):
            check_model(adapter, base, told)
