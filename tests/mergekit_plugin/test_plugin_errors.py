"""What is wrong with a mergekit config, in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from safetensors.torch import load_file, save_file

from hubextrap.errors import HubExtrapError
from hubextrap.mergekit_plugin import config_problems

Config = dict[str, Any]
Change = Callable[[Config], object]


def models(**parameters: object) -> Change:
    """Replace the parameters of the first model, which is step_30."""
    return lambda config: config["models"][0].update(parameters=parameters)


def nameless(**parameters: object) -> Change:
    """The same, by a reference that says no step."""
    return lambda config: config["models"][0].update(
        model=config["models"][0]["model"] + "/.", parameters=parameters
    )


def shared(**parameters: object) -> Change:
    return lambda config: config["parameters"].update(parameters)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            nameless(),
            "no step for {root}/step_30/., nor in its name; write it beside the model: parameters: ",
        ),
        (models(step=30.5), "{root}/step_30: step must be a whole number from 0 on, not 30.5"),
        (models(step=-30), "{root}/step_30: step must be a whole number from 0 on, not -30"),
        (models(step=True), "{root}/step_30: step must be a whole number from 0 on, not True"),
        (models(step="last"), "{root}/step_30: step must be a whole number from 0 on, not 'last'"),
        (models(step=25), "{root}/step_30 says step 30 by its name, and 25 is stated; leave the step out"),
        (models(step=0), "{root}/step_30 says step 30 by its name, and 0 is stated; leave the step out"),
        (nameless(step=25), "step 25 is there twice: {root}/step_30/. and {root}/step_25"),
        (nameless(step=0), "step 0 is there twice: {root}/step_30/. and {root}/step_0"),
        (
            lambda config: config["parameters"].pop("target_step"),
            "target_step is missing; say which step to predict: parameters: {{target_step: 400}}",
        ),
        (shared(target_step="soon"), "target_step must be a number, not 'soon'"),
        (shared(target_step=".inf"), "target_step must be a number, not '.inf'"),
        (shared(target_step=20), "target step 20 is before the last observed step 30; choose a later target"),
        (
            shared(damping=2),
            "damping must be a number from 0 (persistence) to 1 (no damping), or auto, not 2",
        ),
        (
            shared(max_expected_error=0.5),
            "max_expected_error: mergekit goes tensor by tensor, and what error to expect takes a scan",
        ),
        (
            shared(base_step=12),
            "weight: two_point: base_step 12 is not an observed step before the last one (30); choose one of",
        ),
        (shared(base_step=12.5), "two_point: base_step must be a whole number"),
        (shared(fit="sample"), "parameters.fit has no effect: no rule here follows from the weights"),
        (
            shared(fit=0.5, damping="auto"),
            "fit: must be sample, {{sample: 16384}} with the weights per tensor",
        ),
    ],
)
def test_one_thing_wrong(
    change: Change,
    problem: str,
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Callable[..., object],
) -> None:
    config = config_of(sharded, "two_point")
    change(config)
    with pytest.raises(HubExtrapError) as error:
        through_mergekit(config)
    assert problem.format(root=sharded) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "same"),
    [({"base_step": 10.0}, {"base_step": 10}), ({"target_step": "6e1"}, {"target_step": 60})],
)
def test_numbers_may_be_floats_and_texts(
    parameters: Config,
    same: Config,
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Callable[..., dict[str, torch.Tensor]],
    assert_same_bits: Callable[..., None],
) -> None:
    """YAML 1.1 takes 6e1 for text, and a gradient of mergekit's ends in floats."""
    assert_same_bits(
        through_mergekit(config_of(sharded, "two_point", **parameters)),
        through_mergekit(config_of(sharded, "two_point", **same)),
    )


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        (
            {"parameters": {"target_step": 9, "base_stp": 1}},
            ["parameters.base_stp: unknown parameter; did you mean base_step?"],
        ),
        (
            {"models": [{"model": "a", "parameters": {"stp": 1, "damping": 0.5}}]},
            ["models[0].parameters.stp: unknown parameter; did you mean step?"],
        ),
        (
            {"modules": {"text": {"models": [{"model": "a", "parameters": {"q": 1}}]}}},
            ["modules.text.models[0].parameters.q: unknown parameter; {two_point}"],
        ),
        (
            {"slices": [{"sources": [{"model": "a", "parameters": {"step": [1, 2]}}]}]},
            ["slices[0].sources[0].parameters.step: has to be one number, for all tensors of the model"],
        ),
        (
            {"slices": [{"sources": [], "parameters": {"step": 3}}], "parameters": {"step": 2}},
            [
                "parameters.step: a step belongs to a model; write it under models[].parameters",
                "slices[0].parameters.step: a step belongs to a model; write it under models[].parameters",
            ],
        ),
        ({"models": "none", "modules": [], "parameters": None}, []),
        ({"merge_method": "linear", "parameters": {"base_stp": 1}}, []),
    ],
)
def test_what_mergekit_would_pass_over(config: Config, problems: list[str]) -> None:
    takes = {"two_point": "two_point takes step, target_step, damping, fit, base_step"}
    expected = [problem.format(**takes) for problem in problems]
    assert config_problems({"merge_method": "two_point"} | config) == expected


def test_the_command_refuses_it(
    sharded: Path, config_of: Callable[..., Config], through_mergekit: Callable[..., object], tmp_path: Path
) -> None:
    with pytest.raises(HubExtrapError, match=r"mergekit\.yaml: parameters\.base_stp: unknown"):
        through_mergekit(config_of(sharded, "two_point", base_stp=10))
    assert not (tmp_path / "by_mergekit").exists()


def merge_one(*tensors: torch.Tensor, name: str = "w", **parameters: object) -> torch.Tensor:
    group = TensorGroup.from_tensors(tensors, ids=["a", "b", "c"][: len(tensors)], name=name)
    steps = {"a": 0, "b": 10, "c": 20}
    settings = {"step": {key: steps[key] for key in ["a", "b", "c"][: len(tensors)]}, "target_step": 40}
    (result,) = registry.get("two_point")([group], parameters=settings | parameters)
    return result


def test_nan_and_infinity_are_refused() -> None:
    bad = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    with pytest.raises(HubExtrapError, match="w: 2 of 4 results are NaN"):
        merge_one(torch.ones(4), torch.ones(4), bad)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_a_sum_that_its_dtype_does_not_hold_is_refused(dtype: torch.dtype) -> None:
    largest = torch.tensor([1.0, torch.finfo(dtype).max]).to(dtype)
    with pytest.raises(HubExtrapError, match="w: 1 of 2 results are NaN"):
        merge_one(torch.zeros(2).to(dtype), largest)


def test_a_checkpoint_that_is_not_used_is_not_read() -> None:
    unused = torch.tensor([torch.nan])
    assert merge_one(torch.tensor([1.0]), unused, torch.tensor([2.0])).tolist() == [3.0]


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(HubExtrapError, match=r"w is torch.int64, which cannot be combined"):
        merge_one(torch.tensor([1]), torch.tensor([2]))


def test_factors_of_an_adapter_are_refused() -> None:
    with pytest.raises(HubExtrapError, match=r"lora_A.weight is part of an adapter"):
        merge_one(torch.ones(2), torch.ones(2), name="q_proj.lora_A.weight")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"base_model": "a", "gate_mode": "random", "experts": []},
            "experts: a config of mergekit-moe: `mergekit-moe CONFIG OUT` runs it",
        ),
        (
            {"genome": {}, "tasks": []},
            "genome: a config of mergekit-evolve: `mergekit-evolve CONFIG` runs it",
        ),
        (
            {"trajectory": {"repo": "a/b"}, "merge_method": "two_point", "parameters": {"target_step": 4}},
            "trajectory: a recipe of hubextrap's, which mergekit cannot read: `hubextrap merge CONFIG --",
        ),
        (
            {
                "merge_method": "two_point",
                "models": [{"model": f"r/step_{n}", "parameters": {"weight": 1}} for n in range(3)],
            },
            "models[0].parameters.weight: unknown parameter; two_point takes step, target_step, damping, ",
        ),
    ],
)
def test_the_command_says_what_runs_it_instead(
    config: Config, said: str, through_mergekit: Callable[..., object]
) -> None:
    with pytest.raises(HubExtrapError) as error:
        through_mergekit(config)
    assert f"mergekit.yaml: {said}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("said", ["by config.json", "by the tensors"])
def test_models_whose_weights_are_quantised(
    said: str,
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Callable[..., object],
    tmp_path: Path,
) -> None:
    """mergekit reads their numbers without the scales, and makes floats of integers if a dtype is named."""
    root = tmp_path / "run"
    shutil.copytree(sharded, root)
    last = root / "step_30"
    if said == "by config.json":
        config = json.loads((last / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (last / "config.json").write_text(json.dumps(config))
    else:
        index = json.loads((last / "model.safetensors.index.json").read_text())
        file = last / index["weight_map"]["model.layers.0.mlp.up_proj.weight"]
        tensors = load_file(file)
        packed = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
        tensors |= {
            "model.layers.0.mlp.up_proj.weight": packed,
            "model.layers.0.mlp.up_proj.SCB": torch.ones(48),
        }
        save_file(tensors, file, {"format": "pt"})
        index["weight_map"]["model.layers.0.mlp.up_proj.SCB"] = file.name
        (last / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HubExtrapError, match=rf"{last}: its weights are quantised, and mergekit"):
        through_mergekit(config_of(root, "two_point") | {"dtype": "float32"})
