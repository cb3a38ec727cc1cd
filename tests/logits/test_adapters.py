"""Adapters on one base: each is the model that peft makes of it, and the base stays what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_runs import EXPERT_PARAMETERS, tiny_model, write_adapter_run
from peft import PeftModel
from tiny_llama import save_tiny
from transformers import AutoModelForCausalLM

from hubextrap.adapters.base import Bases
from hubextrap.errors import CheckpointMismatch, MethodError, UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.logits import ExtrapolatedForCausalLM, LogProbRequest, load_tokenizer, measure_logprobs
from hubextrap.logits.loading import Models, check_loadable, load_causal_lm
from hubextrap.trajectory import Trajectory, find_trajectory, resolve_checkpoint
from hubextrap.trajectory.checkpoint import UNTOUCHED_BASE

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # by PeftModel
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)
TOKENS = torch.randint(3, 28, (2, 9), generator=torch.Generator().manual_seed(0))
STEPS = (4, 8)
COEFFICIENTS = (-0.5, 0.25, 1.25)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of different ranks."""
    return write_adapter_run(tmp_path_factory.mktemp("run"), STEPS, rank={4: 2, 8: 3})


@pytest.fixture(scope="module")
def trajectory(run: Path) -> Trajectory:
    """The same with the base as its step 0."""
    found = find_trajectory(str(run))
    assert found.checkpoints[0] == UNTOUCHED_BASE
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(TOKENS, use_cache=False).logits
    return found


def by_peft(run: Path, step: int, *, merge: bool = False) -> Any:
    base = AutoModelForCausalLM.from_pretrained(run / "base")
    if step == 0:
        return base.eval()
    model = PeftModel.from_pretrained(base, str(run / f"step_{step}")).eval()
    return model.merge_and_unload() if merge else model


EVERY_KIND: dict[str, dict[str, Any]] = {
    "patterns": {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "bf16": {"dtype": "bfloat16", "base_dtype": "bfloat16"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "transposed with biases": {"architecture": "gpt2", "fan_in_fan_out": True, "bias": "all"},
    "biases of B": {
        "architecture": "gpt2",
        "fan_in_fan_out": True,
        "target_modules": ["c_attn"],
        "lora_bias": True,
    },
    "tied whole": {"model": {"tie_word_embeddings": True}, "modules_to_save": ["embed_tokens"]},
    "tied factors": {
        "model": {"tie_word_embeddings": True},
        "target_modules": ["q_proj", "embed_tokens"],
        "ensure_weight_tying": True,
    },
    "experts": {
        "architecture": "mixtral",
        "target_modules": ["q_proj"],
        "target_parameters": list(EXPERT_PARAMETERS),
    },
    "experts, transposed": {
        "architecture": "gpt_oss",
        "target_modules": [],
        "target_parameters": list(EXPERT_PARAMETERS),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_is_to_the_bit_what_peft_loads(kind: str, tmp_path: Path) -> None:
    run = write_adapter_run(tmp_path, STEPS, **EVERY_KIND[kind])
    models, untouched = Models(), logits(by_peft(run, 0))
    for step in (8, 4, 8):
        checkpoint = resolve_checkpoint(run / f"step_{step}")
        check_loadable(checkpoint, tokenizer=False)
        model = models.load(checkpoint)
        assert torch.equal(logits(model), logits(by_peft(run, step)))
        assert (logits(model) - untouched).abs().max() > 1e-3
        assert torch.equal(logits(models.load(models.bases.common())), untouched)


def test_models_of_one_base_share_its_memory(run: Path, trajectory: Trajectory) -> None:
    models = Models()
    models.bases.find(trajectory.checkpoints)
    loaded = [models.load(one) for one in trajectory.checkpoints]
    places = [{one.data_ptr(): one.nbytes for one in model.parameters()} for model in loaded]
    base = AutoModelForCausalLM.from_pretrained(run / "base")
    assert sum(places[0].values()) == sum(one.nbytes for one in base.parameters())
    for step, place in zip(STEPS, places[1:], strict=True):
        assert places[0].items() < place.items()
        own = (run / f"step_{step}" / "adapter_model.safetensors").stat().st_size
        assert sum(place.values()) - sum(places[0].values()) < own
    for step, model in zip((0, *STEPS), loaded, strict=True):
        assert torch.equal(logits(model), logits(by_peft(run, step)))


def test_a_whole_model_takes_the_place_of_the_base(run: Path, tmp_path: Path) -> None:
    by_peft(run, 4, merge=True).save_pretrained(tmp_path / "merged")
    models = Models()
    first = models.load(resolve_checkpoint(run / "step_4"))
    whole = models.load(resolve_checkpoint(tmp_path / "merged"))
    assert torch.allclose(logits(first), logits(whole), atol=1e-6)
    own = {one.data_ptr() for one in whole.parameters()}
    assert not own & {one.data_ptr() for one in first.parameters()}
    again = models.load(resolve_checkpoint(run / "step_4"))
    assert not {one.data_ptr() for one in again.parameters()} & {one.data_ptr() for one in first.parameters()}


def test_the_tokenizer_is_the_adapters_own_or_that_of_the_base(run: Path, tmp_path: Path) -> None:
    theirs = load_tokenizer(resolve_checkpoint(run / "step_4")).get_vocab()
    assert theirs == load_tokenizer(resolve_checkpoint(run / "base")).get_vocab()
    place = moved(run, tmp_path / "run")
    for file in (run / "base").glob("*token*"):
        shutil.copy(file, place / "step_4")
    config = place / "step_4" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "{{ 'mine' }}"}))
    assert load_tokenizer(resolve_checkpoint(config.parent)).chat_template == "{{ 'mine' }}"


def test_an_adapter_on_the_hub_and_its_base(hub: LocalHub, repo_id: str, run: Path, tmp_path: Path) -> None:
    hub.create_repo(repo_id)
    hub.create_repo(f"{repo_id}-base")
    commit = hub.commit(f"{repo_id}-base", {file.name: file for file in (run / "base").iterdir()})
    config = json.loads((run / "step_8" / "adapter_config.json").read_text())
    changed = tmp_path / "adapter_config.json"
    changed.write_text(json.dumps(config | {"base_model_name_or_path": f"{repo_id}-base"}))
    weights = run / "step_8" / "adapter_model.safetensors"
    hub.commit(repo_id, {changed.name: changed, weights.name: weights, "adapter_model.bin": b"\x80\x04."})
    checkpoint = resolve_checkpoint(repo_id)
    models = Models()
    assert torch.equal(logits(models.load(checkpoint)), logits(by_peft(run, 8)))
    assert models.bases.common().commit == commit
    assert not [one for one in hub.requests if ".bin" in one.path]


def merged_models(run: Path) -> list[Any]:
    return [by_peft(run, step, merge=True) for step in (0, *STEPS)]


def test_a_mixture_of_adapters_is_one_of_merged_models(run: Path, trajectory: Trajectory) -> None:
    mixed: Any = ExtrapolatedForCausalLM.from_checkpoints(trajectory.checkpoints, COEFFICIENTS)
    whole: Any = ExtrapolatedForCausalLM(merged_models(run), COEFFICIENTS)
    assert torch.allclose(logits(mixed), logits(whole), atol=1e-5)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    masked = {
        "input_ids": TOKENS,
        "attention_mask": torch.ones_like(TOKENS).index_fill_(1, torch.arange(2), 0),
    }
    assert torch.equal(mixed.generate(**masked, **how), whole.generate(**masked, **how))
    with torch.inference_mode():  # each keeps its own keys and values, which adapters change
        stepwise = mixed(TOKENS[:, :5])
        rest = mixed(TOKENS[:, 5:], cache=stepwise.get("cache") or stepwise.get("past_key_values"))
    assert torch.allclose(rest.logits, logits(mixed)[:, 5:], atol=1e-5)
    held = {one.data_ptr(): one.nbytes for one in mixed.parameters()}
    base = sum(one.nbytes for one in AutoModelForCausalLM.from_pretrained(run / "base").parameters())
    assert base < sum(held.values()) < 2 * base


def test_a_mixture_of_adapters_is_saved_with_its_base(
    run: Path, trajectory: Trajectory, tmp_path: Path
) -> None:
    mixed = ExtrapolatedForCausalLM.from_checkpoints(trajectory.checkpoints, COEFFICIENTS)
    mixed.save_pretrained(tmp_path / "mixed")
    again = ExtrapolatedForCausalLM.from_pretrained(tmp_path / "mixed")
    assert torch.equal(logits(again), logits(mixed))
    assert mixed.mixture is not None
    assert mixed.mixture.base_model == Bases().of(trajectory.last) == mixed.mixture.checkpoints[0]
    assert mixed.mixture.pinned_name.endswith(", adapters of base")


def test_the_base_alone_without_a_name_is_no_mixture() -> None:
    with pytest.raises(MethodError):
        ExtrapolatedForCausalLM.from_checkpoints([UNTOUCHED_BASE], [0.5])


def test_logprobs_under_every_adapter_are_those_under_merged_models(
    run: Path, trajectory: Trajectory, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "526+850=", "answer": "6731"}\n{"question": "1+9=", "answer": "01"}\n')
    found = measure_logprobs(trajectory, LogProbRequest(prompts))
    folders = []
    for step, model in zip((0, *STEPS), merged_models(run), strict=True):
        save_tiny(model, tmp_path / "whole" / f"step_{step}")
        folders.append(step)
    whole = measure_logprobs(find_trajectory(str(tmp_path / "whole")), LogProbRequest(prompts))
    assert found.steps == whole.steps == tuple(folders)
    assert np.abs(found.values - whole.values).max() < 1e-5
    assert np.abs(found.values[:, 0] - found.values[:, 2]).max() > 1e-2
    sampled = measure_logprobs(trajectory, LogProbRequest(prompts, sample_from=0, max_new_tokens=3))
    assert sampled.steps == found.steps


@pytest.mark.slow
@pytest.mark.parametrize("space", ["weights", "logits"])
def test_lm_evals_model_predicts_adapters(run: Path, tmp_path: Path, space: str) -> None:
    plugin = import_module("hubextrap.lm_eval_plugin")
    recipe = tmp_path / "recipe.yaml"
    output = "output: {rank: exact}\n" if space == "weights" else ""
    recipe.write_text(
        f"trajectory: {{repo: {moved(run, tmp_path / 'run')}}}\nmerge_method: least_squares\n{output}"
        f"parameters: {{target_step: 12}}\nspace: {space}\n"
    )
    found = plugin.HubextrapLM(recipe=str(recipe), device="cpu").model
    coefficients, models = (-2 / 3, 1 / 3, 4 / 3), merged_models(run)
    if space == "logits":
        expected = logits(ExtrapolatedForCausalLM(models, coefficients))
    else:
        states = [model.state_dict() for model in models]
        summed = {
            name: sum(c * state[name].double() for c, state in zip(coefficients, states, strict=True)).float()
            for name in states[0]
        }
        models[0].load_state_dict(summed)
        expected = logits(models[0])
    assert torch.allclose(logits(found), expected, atol=1e-5)
    assert not torch.allclose(expected, logits(by_peft(run, 8)), atol=1e-2)


def moved(run: Path, folder: Path) -> Path:
    """A copy of a run, whose adapters name the base beside them."""
    shutil.copytree(run, folder)
    for config in folder.glob("*/adapter_config.json"):
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"base_model_name_or_path": "base"}))
    return folder


def no_safetensors(run: Path) -> None:
    place = run / "step_4" / "adapter_model.safetensors"
    place.rename(place.with_suffix(".bin"))


def another_base(run: Path) -> None:
    shutil.rmtree(run / "base")
    save_tiny(tiny_model(hidden_size=24), run / "base")


def fewer_layers(run: Path) -> None:
    shutil.rmtree(run / "base")
    save_tiny(tiny_model("gpt2"), run / "base")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (no_safetensors, UnsupportedCheckpoint, "pickles are never loaded"),
        (another_base, UnsupportedCheckpoint, "peft cannot add it"),
        (fewer_layers, UnsupportedCheckpoint, "peft cannot add it"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_weights_are_read(
    run: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    error: type[Exception],
    words: str,
) -> None:
    place = moved(run, tmp_path / "run")
    spoil(place)
    checkpoint = resolve_checkpoint(place / "step_4")
    for load in (check_loadable, load_causal_lm):
        with pytest.raises(error, match=words):
            load(checkpoint)


def test_whole_tensors_of_another_shape(tmp_path: Path) -> None:
    made = write_adapter_run(tmp_path / "made", [4], modules_to_save=["lm_head"])
    run = moved(made, tmp_path / "run")
    shutil.rmtree(run / "base")
    save_tiny(tiny_model(vocab_size=30), run / "base")
    with pytest.raises(CheckpointMismatch, match="name the base that it was trained from") as caught:
        check_loadable(resolve_checkpoint(run / "step_4"))
    assert caught.value.tensor == "lm_head.weight"
