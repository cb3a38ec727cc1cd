"""Which quantised checkpoints are read as floats: those that are certain, and nothing that is nearly one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantisers import fp8_blocks, fp8_config, fp8_floats, mxfp4_floats, mxfp4_of
from safetensors.torch import save_file

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.tensors.assembled import forms_of, in_forms
from hubextrap.tensors.combinable import Combinable, read_combinable
from hubextrap.tensors.configuration import read_config, without_quantisation
from hubextrap.tensors.local import LocalSource
from hubextrap.work.layouts import forms_as_json, forms_from_json

P = "model.layers.0."
Tensors = dict[str, torch.Tensor]
U8 = torch.zeros(2, 12, 2, dtype=torch.uint8)
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}


def plain() -> Tensors:
    return {
        "model.embed_tokens.weight": torch.ones(8, 4).bfloat16(),
        f"{P}mlp.gate.weight": torch.ones(4, 8).bfloat16(),
        f"{P}mlp.gate.e_score_correction_bias": torch.ones(4),
        f"{P}self_attn.k_scale": torch.ones(()),
    }


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def opened(
    folder: Path, tensors: Tensors, config: dict[str, Any], *, second: Tensors | None = None
) -> Combinable:
    """The checkpoint of these tensors; those of a second file too, with an index."""
    folder.mkdir(exist_ok=True)
    files = {"model.safetensors": tensors}
    if second is not None:
        files = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": second}
        weight_map = {name: file for file, those in files.items() for name in those}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, those in files.items():
        save_file({name: one.clone() for name, one in those.items()}, folder / file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    return read_combinable([LocalSource(folder)])


def values(found: Combinable, name: str) -> torch.Tensor:
    (source,), (layout,) = found.sources, found.layouts
    info = layout.tensors[name]
    content = bytearray(info.nbytes)
    source.read(info.file, info.offset, memoryview(content))
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[info.dtype]
    return torch.frombuffer(content, dtype=dtype).reshape(info.shape)


@pytest.mark.parametrize("shape", [(256, 128), (130, 100)])
@pytest.mark.parametrize("apart", [False, True], ids=["one file", "scales in another file"])
def test_fp8_of_deepseek(shape: tuple[int, int], apart: bool, tmp_path: Path) -> None:
    weight, scale = fp8_blocks(random(*shape))
    name = f"{P}mlp.up_proj.weight"
    scales = {f"{name}_scale_inv": scale}
    tensors = {**plain(), name: weight}
    found = opened(
        tmp_path, tensors if apart else tensors | scales, fp8_config(), second=scales if apart else None
    )
    assert torch.equal(values(found, name), fp8_floats(weight, scale))
    (layout,) = found.layouts
    assert layout.tensors.keys() == tensors.keys()
    assert [info.name for info in layout.tensors.values() if info.writes] == [name]
    assert (layout.tensors[name].dtype, layout.tensors[name].writes) == ("F32", "BF16")
    for other, tensor in plain().items():
        assert torch.equal(values(found, other), tensor)
    said = "1 of 5 tensors are FP8 with a scale for each block of 128 × 128, and are read as the numbers"
    assert found.caveats == (f"{tmp_path}: {said} that these stand for",)
    assert read_config(found.sources[0]) == {"model_type": "x"}
    assert "model.safetensors.index.json" not in found.sources[0].files()


def test_fp8_of_fused_experts_and_other_scales(tmp_path: Path) -> None:
    """transformers' fused experts; scales in bfloat16 as of Qwen3; those of activations are left out."""
    fused, scale = fp8_blocks(random(3, 40, 48), (16, 16))
    down, down_scale = fp8_blocks(random(48, 40), (16, 16), torch.bfloat16)
    name, other = f"{P}mlp.experts.gate_up_proj", f"{P}mlp.down_proj.weight"
    tensors = {
        **plain(),
        name: fused,
        f"{name}_scale_inv": scale,
        f"{name}_activation_scale": torch.ones(3),
        other: down,
        f"{other}_scale_inv": down_scale,
        f"{P}mlp.down_proj.activation_scale": torch.ones(()),
    }
    found = opened(tmp_path, tensors, fp8_config((16, 16), activation_scheme="static"))
    assert torch.equal(values(found, name), fp8_floats(fused, scale, (16, 16)))
    assert torch.equal(values(found, other), fp8_floats(down, down_scale, (16, 16)))
    assert found.layouts[0].tensors.keys() == {*plain(), name, other}


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="torch 2.6 has no float8_e8m0fnu")
@pytest.mark.parametrize("scale_name", ["up_proj.weight_scale_inv", "up_proj.scale"])
def test_fp8_with_scales_of_eight_bits(scale_name: str, tmp_path: Path) -> None:
    """As transformers stores ue8m0, and as DeepSeek-V4 calls them."""
    weight, scale = fp8_blocks(random(130, 100), scales=torch.float8_e8m0fnu)
    tensors = {**plain(), f"{P}up_proj.weight": weight, P + scale_name: scale}
    found = opened(tmp_path, tensors, fp8_config(scale_fmt="ue8m0"))
    assert torch.equal(values(found, f"{P}up_proj.weight"), fp8_floats(weight, scale))


@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]])])
def test_fp8_with_one_scale_a_tensor(scale: torch.Tensor, tmp_path: Path) -> None:
    """weight_block_size: null, as of Mistral's on the Hub."""
    weight = random(6, 5).to(torch.float8_e4m3fn)
    tensors = {**plain(), "a.weight": weight, "a.weight_scale_inv": scale}
    config = fp8_config(weight_block_size=None)
    assert torch.equal(values(opened(tmp_path, tensors, config), "a.weight"), weight.float() * 0.25)


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    tensors, expected = plain(), {}
    for name, shape in (("gate_up_proj", (2, 64, 12)), ("down_proj", (2, 32, 64))):
        blocks, scales = mxfp4_of(random(*shape))
        tensors |= {f"{P}mlp.experts.{name}_blocks": blocks, f"{P}mlp.experts.{name}_scales": scales}
        tensors[f"{P}mlp.experts.{name}_bias"] = torch.zeros(2, shape[-1]).bfloat16()
        expected[f"{P}mlp.experts.{name}"] = mxfp4_floats(blocks, scales)
    found = opened(tmp_path, tensors, {"architectures": ["GptOssForCausalLM"], **MXFP4})
    for name, tensor in expected.items():
        assert torch.equal(values(found, name), tensor)
        assert found.layouts[0].tensors[name].dtype == "BF16"
    assert not any(name.endswith(("_blocks", "_scales")) for name in found.layouts[0].tensors)
    assert read_config(found.sources[0]) == {"model_type": "x", "architectures": ["GptOssForCausalLM"]}


def fp8(**changes: torch.Tensor | None) -> Tensors:
    weight, scale = fp8_blocks(random(130, 100))
    made: dict[str, torch.Tensor | None] = {"weight": weight, "weight_scale_inv": scale, **changes}
    return plain() | {f"{P}up.{name}": tensor for name, tensor in made.items() if tensor is not None}


def experts(**changes: torch.Tensor | None) -> Tensors:
    blocks, scales = mxfp4_of(random(2, 64, 12))
    made: dict[str, torch.Tensor | None] = {"down_proj_blocks": blocks, "down_proj_scales": scales, **changes}
    return plain() | {f"{P}mlp.experts.{name}": tensor for name, tensor in made.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        (fp8(), {}),
        (fp8(), {"quantization_config": {"quant_method": "fbgemm_fp8"}}),
        (fp8(), fp8_config((64, 128))),
        (fp8(), fp8_config(weight_block_size=None)),
        (fp8(), fp8_config(weight_block_size=[128])),
        (fp8(), fp8_config(weight_block_size=[128, 0])),
        (fp8(), fp8_config(weight_block_size=[True, 128])),
        (fp8(), fp8_config(weight_block_size="128")),
        (fp8(), fp8_config(fmt="e5m2")),
        (fp8(), fp8_config() | {"text_config": fp8_config((64, 64))}),
        (fp8(weight_scale_inv=None), fp8_config()),
        (fp8(weight_scale_inv=torch.ones(1, 2)), fp8_config()),
        (fp8(weight_scale_inv=torch.ones(2)), fp8_config()),
        (fp8(weight_scale_inv=torch.ones(2, 1, dtype=torch.uint8)), fp8_config()),
        (fp8(weight_scale_inv=None, weight_scale=torch.ones(2, 1)), fp8_config()),
        (fp8(weight=random(130, 100).to(torch.float8_e5m2)), fp8_config()),
        (fp8(weight=random(130, 100).to(torch.float8_e4m3fnuz)), fp8_config()),
        (fp8(weight=torch.zeros(130, 100, dtype=torch.int8)), fp8_config()),
        (fp8() | {"b.weight": random(8, 8).to(torch.float8_e4m3fn)}, fp8_config()),
        (fp8() | {"b.weight": U8[0].view(torch.int8), "b.scale": torch.ones(12, 1)}, fp8_config()),
        (experts(), {}),
        (experts(), {"quantization_config": {"quant_method": "mxfp4"}, "text_config": fp8_config()}),
        (experts(down_proj_scales=None), MXFP4),
        (experts(down_proj_scales=U8[:, :, 0]), MXFP4),
        (experts(down_proj_scales=U8.float()), MXFP4),
        (experts(down_proj_blocks=torch.zeros(2, 12, 2, 8, dtype=torch.uint8)), MXFP4),
        (experts(down_proj_blocks=torch.zeros(2, 12, 32, dtype=torch.uint8)), MXFP4),
        (experts(down_proj=torch.zeros(2, 64, 12).bfloat16()), MXFP4),
        (experts(other_blocks=U8, other_scales=U8[:, :, 0]), MXFP4),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_whole(tensors: Tensors, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="quantised weights cannot be combined") as caught:
        opened(tmp_path, tensors, config)
    assert "dequantise" in str(caught.value)
    assert "persistence" not in str(caught.value)


def test_nothing_is_left_of_a_quantisation_and_all_else_stays() -> None:
    config = {
        "model_type": "x",
        "rms_norm_eps": 1e-05,
        "name": "ü",
        "big": 2**70,
        "text_config": {"a": [1, {"quantization_config": "in a list"}], "quantization_config": {"bits": 4}},
        "compression_config": {"quant_method": "x"},
        "quantization": {"bits": 4},
        "quantization_config": {"quant_method": "fp8"},
    }
    assert json.loads(without_quantisation(config)) == {
        "model_type": "x",
        "rms_norm_eps": 1e-05,
        "name": "ü",
        "big": 2**70,
        "text_config": {"a": [1, {"quantization_config": "in a list"}]},
    }
    assert (
        without_quantisation({"a": {"b": 1}, "c": []})
        == json.dumps({"a": {"b": 1}, "c": []}, indent=2) + "\n"
    )


def test_checkpoints_that_are_alike_share_how_they_are_read(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        opened(folder, fp8(), fp8_config())
    found = read_combinable([LocalSource(folder) for folder in folders])
    assert len({id(layout.tensors) for layout in found.layouts}) == 1
    assert found.caveats[0].startswith(f"{folders[0]} and 2 more: 1 of 5 tensors are FP8")
    assert np.array_equal(*(values(found.of([k]), f"{P}up.weight").numpy() for k in (0, 2)))


def test_a_wrapped_source_lists_and_reads_what_lies_beside(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    opened(folder, fp8(), fp8_config())
    (folder / "tokenizer.json").write_text("{}")
    (source,) = read_combinable([LocalSource(folder)]).sources
    assert source.files().keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    assert source.read_file("tokenizer.json") == b"{}"
    content = source.read_file("config.json")
    assert source.files()["config.json"].size == len(content)
    buffer = bytearray(5)
    source.read("config.json", 2, memoryview(buffer))
    assert bytes(buffer) == content[2:7]


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_plan_carries_how_they_are_read(kind: str, tmp_path: Path) -> None:
    """So that a worker on another machine reads the same bytes, without a look at headers."""
    tensors, config = (fp8(), fp8_config()) if kind == "fp8" else (experts(), MXFP4)
    found = opened(tmp_path, tensors, config)
    stated = json.loads(json.dumps(forms_as_json([forms_of(found.sources[0])])))
    (forms,) = forms_from_json(stated)
    worker = in_forms(LocalSource(tmp_path), forms)
    (shard,) = found.layouts[0].shards
    one, other = bytearray(shard.size), bytearray(shard.size)
    found.sources[0].read(shard.file, 0, memoryview(one))
    worker.read(shard.file, 0, memoryview(other))
    assert one == other
    assert worker.read_file("config.json") == found.sources[0].read_file("config.json")
