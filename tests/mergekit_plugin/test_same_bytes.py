"""One config, two programs, the same bits."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubextrap.methods import find_method, method_names

Config = dict[str, Any]
Weights = dict[str, torch.Tensor]
Run = Callable[..., Weights]
Same = Callable[[Weights, Weights], None]

ALL = [name for name in method_names() if not any(own.required for own in find_method(name).parameters)]


@pytest.mark.parametrize("method", ALL)
def test_every_method_on_a_real_run(
    method: str,
    demo_data: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(demo_data / "rlvr-C", method, target_step=500)
    assert_same_bits(through_mergekit(config), natively(config))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("calibrated", {}),
        ("two_point", {"base_step": "auto"}),
        ("two_point", {"damping": [{"filter": "mlp", "value": "auto"}, {"value": 1}]}),
    ],
)
def test_a_fit_to_a_sample(
    method: str,
    parameters: dict[str, object],
    demo_data: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(demo_data / "rlvr-C", method, target_step=500, fit="sample", **parameters)
    sampled = natively(config)
    assert_same_bits(through_mergekit(config), sampled)
    del config["parameters"]["fit"]
    exact = through_mergekit(config)
    differs = any(not torch.equal(exact[name], tensor) for name, tensor in sampled.items())
    assert differs or "base_step" in parameters  # which is one of few


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("two_point", {"base_step": 10, "damping": 0.7}),
        ("least_squares", {"window": 3, "through_last": True}),
        ("least_squares", {"damping": 0.0}),
        ("low_rank", {"rank": 2}),
        ("calibrated", {"damping": 0.5}),
        ("two_point", {"base_step": "auto"}),
        ("least_squares", {"damping": "auto"}),
        ("low_rank", {"fit": "sample"}),
    ],
)
def test_shards_of_bf16(
    method: str,
    parameters: dict[str, object],
    out_dtype: str,
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(sharded, method, **parameters) | {"out_dtype": out_dtype}
    assert_same_bits(through_mergekit(config), natively(config))


@pytest.mark.parametrize("method", ["two_point", "least_squares", "low_rank"])
def test_tied_embeddings(
    method: str,
    tied: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(tied, method)
    predicted = through_mergekit(config)
    assert "lm_head.weight" not in predicted
    assert_same_bits(predicted, natively(config))


def test_tied_embeddings_stored_twice_by_some(
    tied: Path,
    tmp_path: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    """Trainers store lm_head too, or not; base_model comes without."""
    config = config_of(tied, "least_squares")
    for step in (25, 30):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        weights = {
            name: tensor
            for file in (tied / f"step_{step}").glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        shutil.copy(tied / f"step_{step}" / "config.json", folder)
        config["models"][{30: 0, 25: 1}[step]]["model"] = str(folder)
    predicted, native = through_mergekit(config), natively(config)
    twin = predicted.pop("lm_head.weight")  # mergekit stores it twice, we once
    assert torch.equal(twin, predicted["model.embed_tokens.weight"])
    assert_same_bits(predicted, native)


def test_without_any_dtype_it_stays_that_of_the_checkpoints(
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(sharded, "least_squares")
    del config["dtype"], config["out_dtype"]
    predicted = through_mergekit(config)
    assert {tensor.dtype for tensor in predicted.values()} == {torch.bfloat16}
    assert_same_bits(predicted, natively(config))


def test_wide_tensors_of_a_narrow_model_stay_wide_natively(
    sharded: Path, tmp_path: Path, config_of: Callable[..., Config], through_mergekit: Run, natively: Run
) -> None:
    """The one difference: mergekit rounds them to out_dtype with all others."""
    for source in sharded.glob("step_*"):
        folder = Path(shutil.copytree(source, tmp_path / "run" / source.name))
        for file in folder.glob("*.safetensors"):
            weights = {n: w.float() if "norm" in n else w for n, w in load_file(file).items()}
            save_file(weights, file, {"format": "pt"})
    config = config_of(tmp_path / "run", "two_point")
    theirs, ours = through_mergekit(config), natively(config)
    assert {tensor.dtype for tensor in theirs.values()} == {torch.bfloat16}
    assert {name for name, tensor in ours.items() if tensor.dtype == torch.float32} == {
        n for n in ours if "norm" in n
    }
    assert all(torch.equal(tensor.bfloat16(), theirs[name]) for name, tensor in ours.items())


def test_the_order_of_the_models_says_nothing(
    sharded: Path,
    tmp_path: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(sharded, "least_squares", window=3)
    (tmp_path / "start").symlink_to(config["base_model"])
    config["base_model"] = str(tmp_path / "start")
    config["models"].append({"model": config["base_model"], "parameters": {"step": 5}})
    expected = through_mergekit(config)
    for seed in range(3):
        random.Random(seed).shuffle(config["models"])
        assert_same_bits(through_mergekit(config), expected)


def test_a_filter_gives_some_tensors_other_parameters(
    sharded: Path, config_of: Callable[..., Config], through_mergekit: Run
) -> None:
    """mergekit's own conditional parameters, here as the rule "norms stay as they were last"."""
    filtered = [{"filter": "norm", "value": 0}, {"value": 1}]
    predicted = through_mergekit(config_of(sharded, "two_point", damping=filtered))
    plain = through_mergekit(config_of(sharded, "two_point"))
    last = through_mergekit(config_of(sharded, "persistence"))
    assert any("norm" in name for name in predicted)
    for name, tensor in predicted.items():
        assert torch.equal(tensor, (last if "norm" in name else plain)[name]), name
        assert not torch.equal(plain[name], last[name]), name


def when(part: str, value: object) -> dict[str, object]:
    return {"filter": part, "value": value}


@pytest.mark.parametrize(
    ("method", "conditions"),
    [
        ("two_point", {"damping": [when("norm", 0), when("mlp", 0.8), {"value": 1}]}),
        ("two_point", {"damping": [when("mlp", 0.5)]}),  # the rest as by default
        ("two_point", {"damping": when("layers.1.", 0.25)}),
        ("two_point", {"damping": [when("*", 0.5)]}),
        (
            "two_point",
            {
                "base_step": [when("mlp", 10), when("self_attn", 25), {"value": 0}],
                "damping": [when("mlp", 0.5), when("self_attn", 0.75)],
            },
        ),
        ("least_squares", {"window": [when("mlp", 2), {"value": 3}], "through_last": True}),
        ("low_rank", {"rank": [when("mlp.down", 2), when("mlp", 3), when("o_proj", 1)], "damping": 0.5}),
    ],
)
def test_filters_become_rules(
    method: str,
    conditions: dict[str, object],
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(sharded, method, **conditions)
    theirs = through_mergekit(config)
    assert_same_bits(theirs, natively(config))
    if "*" not in str(conditions):
        plain = {name: value for name, value in conditions.items() if not isinstance(value, (list, dict))}
        without = through_mergekit(config_of(sharded, method, **plain))
        assert any(not torch.equal(tensor, without[name]) for name, tensor in theirs.items())


def test_steps_that_only_names_say(
    sharded: Path,
    config_of: Callable[..., Config],
    through_mergekit: Run,
    natively: Run,
    assert_same_bits: Same,
) -> None:
    config = config_of(sharded, "least_squares")
    stated = through_mergekit(config)
    for entry in config["models"]:
        del entry["parameters"]
    assert_same_bits(through_mergekit(config), stated)
    assert_same_bits(natively(config), stated)


def test_a_list_is_a_gradient_over_the_layers(
    sharded: Path, config_of: Callable[..., Config], through_mergekit: Run
) -> None:
    """Of the two layers the first is predicted at step 40 and the second at step 60."""
    predicted = through_mergekit(config_of(sharded, "two_point", target_step=[40, 60]))
    at = {step: through_mergekit(config_of(sharded, "two_point", target_step=step)) for step in (40, 60)}
    for name, tensor in predicted.items():
        if "layers" in name:
            assert torch.equal(tensor, at[40 if "layers.0" in name else 60][name]), name
