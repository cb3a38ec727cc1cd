"""Runs whose checkpoints are quantised: read as floats where that is certain, refused by all where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import write_adapter_run
from case_runs import Tensors, files_of, random, recipe_for, tiny, write_model, write_run
from command_lines import Ended
from quantisers import LAYOUTS, Specs, fp8_blocks, fp8_config, fp8_floats, mxfp4_floats, mxfp4_of
from safetensors.torch import load_file, save_file

from hubextrap import api
from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.localhub import LocalHub
from hubextrap.progress import SilentProgress
from hubextrap.regrounding.checkpoint import check_model
from hubextrap.tensors import build_header

UP = "model.layers.0.mlp.up_proj.weight"
EXPERTS = "model.layers.0.mlp.experts."
MXFP4 = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
DTYPES = {"I8": torch.int8, "U8": torch.uint8}


def write_layout(folder: Path, specs: Specs, step: int) -> None:
    """A model one of whose weights a quantiser took apart; its bytes change with the step."""
    module = UP.removesuffix("weight")
    entries = [("model.norm.weight", "F32", (4,)), *((module + name, *spec) for name, spec in specs.items())]
    header = build_header(entries)
    folder.mkdir(parents=True)
    size = json.loads(header[8:])
    total = max(one["data_offsets"][1] for one in size.values())
    data = bytes((step + 7 * place) % 60 for place in range(total))
    (folder / "model.safetensors").write_bytes(header + data)
    (folder / "config.json").write_text('{"model_type": "llama"}')


@pytest.mark.parametrize("layout", ["bitsandbytes nf4", "AWQ", "torchao int8", "ComfyUI", "modelopt nvfp4"])
def test_quantised_weights_are_refused_whatever_they_are_called(
    layout: str, tmp_path: Path, cli: Callable[..., Ended], refused: Callable[[Path], str]
) -> None:
    """unslothai/unsloth-zoo#856, Lightning-AI/litgpt#513; without a word in config.json.

    tests/tensors/test_combinable.py goes through the layouts of more programs.
    """
    for step in (100, 200):
        write_layout(tmp_path / "run" / f"step_{step}", LAYOUTS[layout], step)
    said = refused(tmp_path / "run")
    assert "quantised weights cannot be combined" in said
    assert "dequantise" in said
    assert "persistence" not in said
    rule = {"match": "*up_proj*", "method": "persistence"}
    parameters = {"target_step": 300, "tensors": [rule]}
    ended = cli(
        "merge", recipe_for(tmp_path / "run", tmp_path / "rule.yaml", parameters=parameters), "--out", "o"
    )
    assert (ended.code, ended.err.partition("error: ")[2].rstrip("\n")) == (1, said)


@pytest.mark.parametrize("place", ["top", "compression_config", "text_config"])
def test_a_configuration_that_says_so_is_enough(
    place: str, tmp_path: Path, cli: Callable[..., Ended], refused: Callable[[Path], str]
) -> None:
    stated: dict[str, Any] = {"quant_method": "torchao"}
    config = {
        "top": {"quantization_config": stated},
        "compression_config": {"compression_config": stated},
        "text_config": {"text_config": {"quantization_config": stated}},
    }[place]
    assert "are quantised (torchao)" in refused(write_run(tmp_path / "short", config=config))
    run = write_run(tmp_path / "run", (100, 200, 300), config=config)
    for command in (("predict", run, "--out", "p"), ("backtest", run)):
        ended = cli(*command)
        assert ended.code == 1
        assert "are quantised (torchao)" in ended.err


def deepseek(step: int, block: tuple[int, int] = (128, 128), scales: torch.dtype = torch.float32) -> Tensors:
    weight, scale = fp8_blocks(random(7, 130, 200) * 0.02 + step * 1e-5, block, scales)
    return {**tiny(step), UP: weight, f"{UP}_scale_inv": scale}


def gpt_oss(step: int, requantised: bool) -> Tensors:
    """Of RL on gpt-oss: the rest of the model moves, or a requantised export of all of it."""
    blocks, scales = mxfp4_of(random(5, 2, 64, 12) * 0.02 + (step * 1e-5 if requantised else 0))
    bias = torch.full((2, 12), step / 100).bfloat16()
    return {
        **tiny(step),
        f"{EXPERTS}gate_up_proj_blocks": blocks,
        f"{EXPERTS}gate_up_proj_scales": scales,
        f"{EXPERTS}gate_up_proj_bias": bias,
    }


def as_floats(tensors: Mapping[str, torch.Tensor], block: tuple[int, int] = (128, 128)) -> Tensors:
    """The same model as it was before quantisation, but for what that lost."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            made[name.removesuffix("_blocks")] = mxfp4_floats(
                tensor, tensors[name.replace("_blocks", "_scales")]
            )
        elif tensor.dtype == torch.float8_e4m3fn:
            made[name] = fp8_floats(tensor, tensors[f"{name}_scale_inv"], block)
        elif not name.endswith(("_scales", "_scale_inv")):
            made[name] = tensor
    return made


class Counted(SilentProgress):
    """What the stages were to come to, and came to, by their labels."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Any]:
        counted = self.stages[label] = [total or 0, 0]
        self.advance = lambda amount: counted.__setitem__(1, counted[1] + amount)  # type: ignore[method-assign]
        yield self


@pytest.mark.parametrize("tensors", [deepseek, lambda step: gpt_oss(step, requantised=True)])
def test_progress_is_of_the_bytes_that_are_stored(tensors: Callable[[int], Tensors], tmp_path: Path) -> None:
    config = fp8_config() if tensors is deepseek else MXFP4
    run = write_run(tmp_path / "run", tensors=tensors, config=config)
    recipe, told = recipe_for(run, tmp_path / "r.yaml"), Counted()
    planned = api.plan(recipe).bytes_read
    api.merge(recipe, out=tmp_path / "out", progress=told)
    api.scan(run, out=tmp_path / "s.safetensors", progress=told)
    assert planned < sum(file.stat().st_size for file in run.rglob("*.safetensors"))
    assert told.stages["merge"] == told.stages["scan"] == [planned, planned]


def predicted(cli: Callable[..., Ended], run: Path | str, out: str, **sections: Any) -> Path:
    """The folder of a prediction by two_point."""
    recipe = recipe_for(run, Path(f"{out}.yaml"), **sections)
    ended = cli("merge", recipe, "--out", out, "-q")
    assert ended.code == 0, ended
    return Path(out)


def check_same_tensors(one: Path, other: Path) -> None:
    found, expected = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("requantised", [False, True])
def test_mxfp4_is_combined_as_the_floats_that_it_is(
    requantised: bool, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """thinking-machines-lab/tinker-cookbook#587, unslothai/unsloth-zoo#885: the bfloat16 run's very bytes."""
    steps = (100, 200, 300)
    run = write_run(tmp_path / "run", steps, lambda step: gpt_oss(step, requantised), config=MXFP4)
    plain = write_run(tmp_path / "plain", steps, lambda step: as_floats(gpt_oss(step, requantised)))
    later = {"parameters": {"target_step": 400}}
    out, expected = predicted(cli, run, "o", **later), predicted(cli, plain, "p", **later)
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["model_type"], config["torch_dtype"]) == ("gpt_oss", "bfloat16")
    planned = cli("plan", "o.yaml", "--out", "q", "--json")
    report = json.loads(planned.out)
    # of two checkpoints: 17 bytes for each 32 numbers, the bias, and the rest of the model
    assert report["bytes_read"] == 2 * (2 * 64 * 12 * 17 // 32 + 2 * 2 * 12 + 2 * 100)
    assert report["bytes_written"] == (out / "model.safetensors").stat().st_size
    assert any("1 of 6 tensors are MXFP4, and are read as the numbers" in note for note in report["notes"])
    assert any("are written as BF16" in note for note in report["notes"])
    card = (out / "README.md").read_text()
    (told,) = [line for line in card.splitlines() if "are MXFP4, and are read as the numbers" in line]
    assert str(tmp_path) not in told
    for folder, scan in ((run, "a.safetensors"), (plain, "b.safetensors")):
        assert cli("scan", folder, "--out", scan, "-q").code == 0
    one, other = load_file("a.safetensors"), load_file("b.safetensors")
    assert one.keys() == other.keys()
    for name in one.keys() - {"run"}:
        assert torch.equal(one[name], other[name]) or one[name].isnan().any(), name


def test_fp8_is_combined_as_floats(tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """As the same numbers in float32 files, asked for in bfloat16; out_dtype is honoured as there."""
    run = write_run(tmp_path / "run", tensors=deepseek, config=fp8_config())
    plain = write_run(tmp_path / "plain", tensors=lambda step: as_floats(deepseek(step)))
    rule = {"match": UP, "method": "two_point"}
    expected = load_file(predicted(cli, plain, "p") / "model.safetensors")
    out = predicted(cli, run, "o")
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.bfloat16()), (name, rule)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    wide = load_file(predicted(cli, run, "w", out_dtype="float32") / "model.safetensors")
    assert torch.equal(wide[UP], expected[UP])
    assert json.loads(Path("w/config.json").read_text())["torch_dtype"] == "float32"


def test_float_checkpoints_and_several_ways_to_quantise_them_are_one_run(
    tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """A bfloat16 base under FP8 steps, whose blocks and scales are not the same."""
    ways = {200: (128, 128), 300: (64, 128)}
    for folder in ("mixed", "plain"):
        write_model(
            tmp_path / folder / "step_100", as_floats(deepseek(100)) | {UP: random(7, 130, 200).bfloat16()}
        )
    for step, block in ways.items():
        tensors = deepseek(step, block, torch.bfloat16)
        write_model(tmp_path / "mixed" / f"step_{step}", tensors, fp8_config(block))
        write_model(tmp_path / "plain" / f"step_{step}", as_floats(tensors, block))
    method = {"merge_method": "least_squares", "parameters": {"target_step": 400}}
    found = load_file(predicted(cli, tmp_path / "mixed", "o", **method) / "model.safetensors")
    expected = load_file(predicted(cli, tmp_path / "plain", "p", **method) / "model.safetensors")
    assert torch.equal(found[UP], expected[UP].bfloat16())
    planned = json.loads(cli("plan", "o.yaml", "--json").out)
    assert sum("are read as the numbers" in note for note in planned["notes"]) == 2


def test_a_float_checkpoint_after_quantised_ones_stays_what_it_is(
    tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    write_run(tmp_path / "run", (100, 200), deepseek, config=fp8_config())
    write_model(tmp_path / "run" / "step_300", {**tiny(300), UP: random(7, 130, 200).half()})
    out = predicted(cli, tmp_path / "run", "o", parameters={"target_step": 400})
    assert load_file(out / "model.safetensors")[UP].dtype == torch.float16
    assert "are written as" not in (out / "README.md").read_text()


def test_what_is_copied_of_a_quantised_checkpoint_is_copied_as_floats(
    tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    run = write_run(tmp_path / "run", tensors=deepseek, config=fp8_config())
    parameters = {"target_step": 300, "tensors": [{"match": UP, "method": "persistence"}]}
    out = predicted(cli, run, "o", parameters=parameters)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found[UP], as_floats(deepseek(200))[UP].bfloat16())
    said = json.loads(cli("plan", "o.yaml", "--json").out)["notes"]
    copied = next(note for note in said if note.startswith("copied from the last checkpoint"))
    assert f"1 of 5 tensors, {2 * 130 * 200:,} bytes" in copied


def test_ranges_of_the_hub_give_the_bytes_of_the_folder(
    tmp_path: Path, cli: Callable[..., Ended], cdn_hub: LocalHub, repo_id: str, logged_in: str
) -> None:
    cdn_hub.create_repo(repo_id)
    for step in (100, 200):
        tensors = deepseek(step) | gpt_oss(step, requantised=True)
        floats = {name: one for name, one in tensors.items() if not name.startswith(EXPERTS)}
        for branch, those, config in (("fp8", floats, fp8_config()), ("mxfp4", gpt_oss(step, True), MXFP4)):
            folder = write_model(tmp_path / branch / f"step_{step}", those, config)
            cdn_hub.commit(repo_id, files_of(folder), revision=f"{branch}_step_{step}")
    for branch in ("fp8", "mxfp4"):
        local = predicted(cli, tmp_path / branch, f"local_{branch}")
        trajectory = {"repo": repo_id, "steps": {"pattern": branch + "_step_{step}"}}
        remote = predicted(cli, repo_id, f"remote_{branch}", trajectory=trajectory)
        for file in ("model.safetensors", "config.json"):
            assert (local / file).read_bytes() == (remote / file).read_bytes()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0"])
def test_types_that_only_quantised_weights_have(
    dtype: str, tmp_path: Path, cli: Callable[..., Ended], refused: Callable[[Path], str]
) -> None:
    """safetensors/safetensors#839, foundation-model-stack/fastsafetensors#69: such files are whole."""
    entries = {
        "model.norm.weight": ("F32", [4], 16),
        "w": (dtype, [4, 32], {"F4": 64, "F6_E2M3": 96}.get(dtype, 128)),
    }
    for step in (100, 200):
        header, position = {}, 0
        for name, (kind, shape, size) in entries.items():
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + size]}
            position += size
        text = json.dumps(header).encode()
        folder = write_model(tmp_path / "run" / f"step_{step}", tiny(step))
        data = len(text).to_bytes(8, "little") + text + bytes([step % 50]) * position
        (folder / "model.safetensors").write_bytes(data)
    assert cli("steps", tmp_path / "run").code == 0
    said = refused(tmp_path / "run")
    assert "quantised" in said
    assert "dequantise" in said
    assert "download" not in said


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_adapters_on_a_quantised_base(architecture: str, tmp_path: Path, cli: Callable[..., Ended]) -> None:
    """QLoRA on FP8 or MXFP4: what the adapters change is added to the floats that the base is."""
    pytest.importorskip("peft")
    small = {"hidden_size": 32, "intermediate_size": 32}
    run = write_adapter_run(tmp_path / "run", (10, 20), architecture=architecture, model=small)
    shutil.copytree(run, tmp_path / "plain")
    tensors = load_file(run / "base" / "model.safetensors")
    quantised: Tensors = {}
    for name, tensor in tensors.items():
        if architecture == "llama" and name.endswith("proj.weight"):
            quantised[name], quantised[f"{name}_scale_inv"] = fp8_blocks(tensor, (16, 16))
        elif name.endswith("experts.gate_up_proj"):
            quantised[f"{name}_blocks"], quantised[f"{name}_scales"] = mxfp4_of(tensor)
        else:
            quantised[name] = tensor
    assert quantised.keys() != tensors.keys()
    config = json.loads((run / "base" / "config.json").read_text())
    save_file(
        as_floats(quantised, (16, 16)), tmp_path / "plain" / "base" / "model.safetensors", {"format": "pt"}
    )
    save_file(quantised, run / "base" / "model.safetensors", {"format": "pt"})
    stated = fp8_config((16, 16)) if architecture == "llama" else MXFP4
    (run / "base" / "config.json").write_text(json.dumps(config | stated))
    outs = []
    for folder in (run, tmp_path / "plain"):
        trajectory = {"repo": str(folder), "base": str(folder / "base")}
        sections = {"trajectory": trajectory, "output": {"as": "merged"}, "out_dtype": "float32"}
        outs.append(predicted(cli, folder, f"o_{folder.name}", parameters={"target_step": 30}, **sections))
    check_same_tensors(*outs)
    assert "quantization_config" not in json.loads((outs[0] / "config.json").read_text())


def tiny_quantised(architecture: str, folder: Path) -> None:
    """A random model of transformers' own configuration, quantised as its makers publish theirs."""
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 28, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "tie_word_embeddings": False}
    stated = fp8_config((32, 32))
    if architecture == "deepseek_v3":
        experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2}
        ranks = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}
        rest = {"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 0, "v_head_dim": 16}
        config = transformers.DeepseekV3Config(**small, **heads, **experts, **ranks, **rest)
    else:
        config = transformers.GptOssConfig(
            **small, **heads, num_local_experts=2, num_experts_per_tok=1, head_dim=16, num_key_value_heads=2
        )
        stated = MXFP4
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():  # some are left as the memory was
            parameter.normal_(0, 0.02)
    model.save_pretrained(folder)
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if architecture == "gpt_oss" and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = mxfp4_of(tensor)
        elif architecture == "deepseek_v3" and name.endswith("proj.weight"):
            tensors[name], tensors[f"{name}_scale_inv"] = fp8_blocks(tensor, (32, 32))
        else:
            tensors[name] = tensor
    assert any(name.endswith(("_scales", "_scale_inv")) for name in tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(said | {"quantization_config": stated["quantization_config"]})
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["deepseek_v3", "gpt_oss"])
def test_what_is_written_loads_as_transformers_loads_the_quantised_model(
    architecture: str, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    """Bit for bit, every weight: two checkpoints of the same weights predict them."""
    import transformers

    for step in (100, 200):
        tiny_quantised(architecture, tmp_path / "run" / f"step_{step}")
    out = predicted(cli, tmp_path / "run", "o")
    kind = {"deepseek_v3": "FineGrainedFP8Config", "gpt_oss": "Mxfp4Config"}[architecture]
    asked = getattr(transformers, kind)(dequantize=True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(tmp_path / "run" / "step_200", dtype=torch.bfloat16, quantization_config=asked).state_dict()
    ours = load(out, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def test_a_trainer_does_not_go_on_with_floats_in_place_of_what_it_saved(tmp_path: Path) -> None:
    """Of `reground`: the round after a jump would begin with other weights than the trainer asked for."""
    folder = write_model(tmp_path / "x", deepseek(100), fp8_config())
    with (
        SilentProgress().stage("x", 1) as stage,
        pytest.raises(UnsupportedCheckpoint, match="save the model in bf16"),
    ):
        check_model(folder, None, stage)
