"""Checkpoints without plain weights: refused alike by every command and any rules; the ways out work."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubextrap import api
from hubextrap.errors import HubExtrapError, UnsupportedCheckpoint
from hubextrap.recipe import parse_recipe
from hubextrap.trajectory import find_trajectory

Tensors = dict[str, torch.Tensor]
Run = Callable[..., Any]
UP = "model.layers.0.mlp.up_proj"


def plain(step: int) -> Tensors:
    generator = torch.Generator().manual_seed(step)
    return {
        "model.embed_tokens.weight": torch.randn(8, 4, generator=generator).bfloat16(),
        f"{UP}.weight": torch.randn(4, 4, generator=generator).bfloat16(),
    }


def write(folder: Path, tensors: Tensors, config: dict[str, object] | None = None) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **(config or {})}
    (folder / "config.json").write_text(json.dumps(described))


def lora(step: int) -> Tensors:
    return plain(step) | {f"{UP}.lora_A.weight": torch.ones(2, 4), f"{UP}.lora_B.weight": torch.ones(4, 2)}


def hollow(step: int) -> Tensors:
    return plain(step) | {f"{UP}.weight": torch.zeros(0, dtype=torch.bfloat16)}


def packed(step: int) -> Tensors:
    weight = torch.randint(0, 255, (8, 1), generator=torch.Generator().manual_seed(step)).to(torch.uint8)
    return plain(step) | {f"{UP}.weight": weight, f"{UP}.weight.absmax": torch.rand(2) * step}


def float8(step: int) -> Tensors:
    weight = plain(step)[f"{UP}.weight"].to(torch.float8_e4m3fn)
    return plain(step) | {f"{UP}.weight": weight, f"{UP}.weight_scale_inv": torch.rand(1, 1) * step}


KINDS: dict[str, Callable[[int], Tensors]] = {
    "lora": lora,
    "hollow": hollow,
    "packed": packed,
    "float8": float8,
}


@pytest.fixture
def outcomes(cli: Run, recipe_file: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What is wrong with a run by plan, scan and merge; "" where nothing is."""

    def ask(run: Path, **sections: object) -> dict[str, str]:
        recipe = recipe_file(run, **sections)
        out = tmp_path / "out"
        planned = json.loads(cli("plan", recipe, "--out", out, "--quiet", "--json").out)
        found = {"plan": "\n".join(planned["problems"])}
        for name, command in {
            "merge": ("merge", recipe, "--out", out, "--quiet"),
            "scan": ("scan", run, "--out", tmp_path / "scan.safetensors", "--quiet"),
        }.items():
            result = cli(*command)
            assert (result.code == 0) is (result.err == ""), result
            found[name] = result.err.removeprefix("error: ").rstrip("\n")
            assert result.code == 0 or not out.exists()
        assert bool(found["scan"]) is not (tmp_path / "scan.safetensors").exists()
        shutil.rmtree(out, ignore_errors=True)
        (tmp_path / "scan.safetensors").unlink(missing_ok=True)
        return found

    return ask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [(0,), (30,), (0, 10, 30)], ids=["the first", "the last", "all"])
def test_refused_alike(
    kind: str, where: tuple[int, ...], tmp_path: Path, outcomes: Callable[..., dict[str, str]]
) -> None:
    for step in (0, 10, 30):
        write(tmp_path / "run" / f"step_{step}", (KINDS[kind] if step in where else plain)(step))
    found = outcomes(tmp_path / "run")
    assert len(set(found.values())) == 1, found
    assert found["plan"].startswith(f"{tmp_path}/run/step_{where[0]}/model.safetensors: tensor '{UP}")


@pytest.mark.parametrize(
    "rules",
    [
        [{"match": f"{UP}.weight", "method": "persistence"}],
        [{"match": f"{UP}*", "method": "persistence"}],
        [{"match": "*", "method": "persistence"}],
        [{"match": "*absmax", "method": "average"}],
    ],
)
def test_no_rule_predicts_half_of_a_quantised_weight(
    rules: list[dict[str, str]], tmp_path: Path, outcomes: Callable[..., dict[str, str]]
) -> None:
    for step in (0, 10):
        write(tmp_path / "run" / f"step_{step}", packed(step))
    found = outcomes(tmp_path / "run", parameters={"target_step": 60, "tensors": rules})
    assert len(set(found.values())) == 1
    assert "quantised weights cannot be combined" in found["merge"]


def test_plan_scan_and_merge_agree_on_whatever_is_there(
    tmp_path: Path, outcomes: Callable[..., dict[str, str]]
) -> None:
    dice = random.Random(7)
    names = [
        "weight",
        "weight_scale",
        "qweight",
        "lora_A.default.weight",
        "position_ids",
        "bias",
        "gain",
        "packed",
    ]
    kinds = [torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.bool]
    refused = 0
    for number in range(14):
        run = tmp_path / f"run{number}"
        chosen = {
            f"layers.0.{name}": (dice.choice(kinds), dice.choice([0, 1, 8])) for name in dice.sample(names, 2)
        }
        for step in (0, 10):
            extra = {name: torch.ones(size).to(dtype) for name, (dtype, size) in chosen.items()}
            write(run / f"step_{step}", plain(step) | extra)
        found = outcomes(run)
        assert len(set(found.values())) == 1, (chosen, found)
        refused += bool(found["plan"])
    assert 3 < refused < 12, "the dice show both"


def test_what_is_copied_is_told_by_plan_merge_and_card(
    cli: Run, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    extra = {
        "model.embeddings.position_ids": torch.arange(8),
        "model.layers.0.gate.e_score_correction_bias": torch.ones(4),
    }
    for step in (0, 10):
        write(tmp_path / "run" / f"step_{step}", plain(step) | extra)
    recipe = recipe_file(tmp_path / "run")
    wide = "1 of 4 tensors, 16 bytes (9.1%): model.layers.0.gate.e_score_correction_bias"
    copied = "1 of 4 tensors, 64 bytes (36.4%): model.embeddings.position_ids"
    told = (
        f"out_dtype does not narrow what the last checkpoint keeps wider than the rest, in F32: {wide}",
        f"copied from the last checkpoint, not predicted: {copied}",
    )
    planned = cli("plan", recipe, "--quiet").out
    merged = cli("merge", recipe, "--out", tmp_path / "out", "--quiet").out
    card = (tmp_path / "out" / "README.md").read_text()
    for line in told:
        assert f"  note      {line}\n" in planned
        assert f"note: {line}\n" in merged
        assert f"- {line}\n" in card
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.layers.0.gate.e_score_correction_bias"].dtype == torch.float32
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_logits_are_mixed_of_quantised_models_and_weights_are_not(tmp_path: Path) -> None:
    """What plan says of a recipe is what becomes of it: calibrated reads the weights."""
    for step in (0, 10, 20):
        write(tmp_path / "run" / f"step_{step}", float8(step))
    text = "trajectory: {{repo: {}}}\nmerge_method: {}\nparameters: {{target_step: 40}}\nspace: logits\n"
    assert api.plan(parse_recipe(text.format(tmp_path / "run", "two_point"))).problems == ()
    from hubextrap.logits import recipe_mixture

    recipe = parse_recipe(text.format(tmp_path / "run", "calibrated"))
    (problem,) = api.plan(recipe).problems
    with pytest.raises(UnsupportedCheckpoint) as caught:
        recipe_mixture(recipe)
    assert str(caught.value) == problem


def test_the_api_refuses_too(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        write(tmp_path / "run" / f"step_{step}", lora(step))
    trajectory = find_trajectory(str(tmp_path / "run"))
    with pytest.raises(UnsupportedCheckpoint, match="part of an adapter"):
        api.scan(trajectory)
    with pytest.raises(UnsupportedCheckpoint, match="part of an adapter"):
        api.backtest(trajectory)


# The ways out that the messages name


def small_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).bfloat16()  # type: ignore[no-any-return]


def predicted(run: Path, out: Path) -> Tensors:
    recipe = f"trajectory: {{repo: {run}}}\nmerge_method: two_point\nparameters: {{target_step: 300}}\n"
    api.merge(parse_recipe(recipe), out=out)
    return load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_merged_into_their_base_are_predicted(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    small_llama().save_pretrained(base)  # type: ignore[operator]
    for step in (100, 200):
        settings = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
        adapter, whole = tmp_path / f"adapter_{step}", tmp_path / "whole" / f"step_{step}"
        model.save_pretrained(adapter)
        write(whole, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
        # as the message says
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        model.merge_and_unload().save_pretrained(tmp_path / "merged" / f"step_{step}")
    with pytest.raises(HubExtrapError, match=r"merge_and_unload\(\)\.save_pretrained"):
        predicted(tmp_path / "whole", tmp_path / "out")
    found = predicted(tmp_path / "merged", tmp_path / "out")
    query = "model.layers.0.self_attn.q_proj.weight"
    one, other = (
        load_file(tmp_path / "merged" / f"step_{s}" / "model.safetensors")[query] for s in (100, 200)
    )
    torch.testing.assert_close(found[query].float(), 2 * other.float() - one.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_float8_dequantised_by_transformers_is_predicted(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    model = small_llama()
    weights = dict(model.state_dict().items())
    for step in (100, 200):
        model.save_pretrained(tmp_path / f"plain_{step}")  # type: ignore[operator]
        tensors: Tensors = {}
        for name, weight in weights.items():
            tensors[name] = weight
            if "_proj" in name:  # one block of 128 × 128 each
                scale = weight.float().abs().max() / 448 * step / 100
                tensors |= {
                    name: (weight.float() / scale).to(torch.float8_e4m3fn),
                    f"{name}_scale_inv": scale.view(1, 1),
                }
        told = json.loads((tmp_path / f"plain_{step}" / "config.json").read_text())
        told["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        write(tmp_path / "fp8" / f"step_{step}", tensors, told)
        # as the message says of what is quantised in other ways
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "fp8" / f"step_{step}",
            dtype="bfloat16",
            quantization_config=FineGrainedFP8Config(dequantize=True),
        ).save_pretrained(tmp_path / "bf16" / f"step_{step}", save_original_format=False)
    ours = predicted(tmp_path / "fp8", tmp_path / "ours")
    found = predicted(tmp_path / "bf16", tmp_path / "out")
    for name, tensor in found.items():  # which was rounded once more, before the line was drawn
        assert ours[name].dtype == torch.bfloat16
        assert torch.allclose(ours[name].float(), tensor.float(), rtol=0.05, atol=0.02), name
    assert found.keys() == weights.keys()
    # transformers 5.6 leaves what it dequantised in float32
    assert {tensor.dtype for tensor in found.values()} <= {torch.bfloat16, torch.float32}
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
