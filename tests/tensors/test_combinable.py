"""What holds no plain weights is told by names, dtypes and shapes, and nothing else is taken for it."""

from __future__ import annotations

import ast
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from quantisers import LAYOUTS

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.tensors import DTYPES, LocalSource, TensorInfo, build_header
from hubextrap.tensors.combinable import is_adapter_tensor, read_combinable
from hubextrap.tensors.configuration import quantisation_method
from hubextrap.tensors.quantised import quantised_pair

Specs = dict[str, tuple[str, tuple[int, ...]]]
"""Name → dtype, shape."""
Folder = Callable[[dict[str, bytes]], Path]
PLAIN: Specs = {"model.embed_tokens.weight": ("BF16", (8, 4)), "model.norm.weight": ("F32", (4,))}
MODULE = "model.layers.0.mlp.up_proj"


def infos(specs: Specs) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, dtype, shape, "f", 0, math.prod(shape) * DTYPES[dtype].itemsize)
        for name, (dtype, shape) in specs.items()
    }


def files(specs: Specs, config: object = None) -> dict[str, bytes]:
    header = build_header([(name, dtype, shape) for name, (dtype, shape) in specs.items()])
    size = sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in specs.values())
    return {
        "model.safetensors": header + bytes(size),
        "config.json": json.dumps(config or {"model_type": "llama"}).encode(),
    }


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.norm.weight",
        "module.base_model.model.lm_head.weight",
        "model.layers.0.mlp.up_proj.base_layer.weight",
        "model.layers.0.mlp.up_proj.base_layer.bias",
        "model.layers.0.mlp.up_proj.lora_A.default.weight",
        "model.layers.0.mlp.up_proj.lora_B.weight",
        "model.layers.0.mlp.up_proj.lora_A",
        "model.embed_tokens.lora_embedding_A.default",
        "model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight",
        "lm_head.modules_to_save.default.weight",
        "lm_head.original_module.weight",
        "model.layers.0.mlp.up_proj.hada_w1_a.default",
        "model.layers.0.mlp.up_proj.lokr_w2.default",
        "model.layers.0.mlp.up_proj.oft_r.default",
        "model.layers.0.mlp.up_proj.oft_R.default.weight",
        "model.layers.0.mlp.up_proj.boft_s.default",
        "model.layers.0.mlp.up_proj.vera_lambda_b.default",
        "base.vera_A.default",
        "model.layers.0.mlp.up_proj.ia3_l.default",
        "model.layers.0.mlp.up_proj.miss_block.default",
        "prompt_embeddings",
        "prompt_encoder.default.embedding.weight",
        "decoder.layers.0.self_attention.linear_qkv.to_wrap.weight",
        "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight",
        "model.layers.0.self_attn.adapter_layer.parallel.linear_out.weight",
        "unet.attn.to_q_lora.down.weight",
        "model.layers.0.mlp.up_proj.LoRA_A.weight",
        "model.layers.0.mlp.up_proj.loraB",
        "model.layers.0.mlp.up_proj.magnitude_vector",
    ],
)
def test_names_of_adapters(name: str, folder: Folder) -> None:
    assert is_adapter_tensor(name)
    path = folder(files({**PLAIN, name: ("BF16", (2, 4))}))
    with pytest.raises(UnsupportedCheckpoint, match="part of an adapter"):
        read_combinable([LocalSource(path)])


def test_the_adapter_beside_a_wrapped_model_is_named(tmp_path: Path) -> None:
    """As verl leaves both (verl-project/verl#4761): the model's own file does not say its scaling."""
    for place, names in (
        (
            "huggingface/model.safetensors",
            files({**PLAIN, f"{MODULE}.lora_A.default.weight": ("F32", (2, 4))}),
        ),
        ("lora_adapter/adapter_model.safetensors", None),
    ):
        path = tmp_path / place
        path.parent.mkdir()
        path.write_bytes(names["model.safetensors"] if names else b"")
    with pytest.raises(UnsupportedCheckpoint, match=f"as {tmp_path}/lora_adapter is one; or merge"):
        read_combinable([LocalSource(tmp_path / "huggingface")])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.attn.w_lora.lora.0.weight",  # RWKV-7
        "model.layers.0.self_attn.q_a_proj.weight",  # DeepSeek's own low rank
        "model.layers.0.shared_transformer.linear_q_adapter_list.0.0.weight",  # Zamba2
        "prompt_encoder.shared_embedding.positional_embedding",  # SAM
        "base_layer.0.weight",  # DLA
        "base_model.embed.weight",
        "visual.merger.ln_q.weight",
        "model.layers.0.soft_moe.weight",
        "model.explorations.weight",
    ],
)
def test_plain_names_that_look_a_little_like_it(name: str) -> None:
    assert not is_adapter_tensor(name)


def wrapped_models() -> Iterator[tuple[str, torch.nn.Module]]:
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    linear = {"target_modules": ["q_proj"]}
    kinds = {
        "LoraConfig": [linear, {**linear, "use_dora": True}, {"target_modules": ["embed_tokens"]}],
        "AdaLoraConfig": [{**linear, "total_step": 10}],
        "LoHaConfig": [linear],
        "LoKrConfig": [linear],
        "OFTConfig": [{**linear, "oft_block_size": 8}],
        "BOFTConfig": [{**linear, "boft_block_size": 4}],
        "VeraConfig": [linear],
        "FourierFTConfig": [{**linear, "n_frequency": 4}],
        "IA3Config": [{**linear, "feedforward_modules": []}],
        "HRAConfig": [linear],
        "VBLoRAConfig": [{**linear, "vector_length": 8, "num_vectors": 4, "topk": 2}],
        "LNTuningConfig": [{"target_modules": ["norm"]}],
        "TrainableTokensConfig": [{"token_indices": [0, 1]}],
    }
    for kind, several in kinds.items():
        for options in several:
            settings = getattr(peft, kind)(task_type="CAUSAL_LM", **options)
            yield kind, peft.get_peft_model(LlamaForCausalLM(config), settings)


@pytest.mark.filterwarnings("ignore")
def test_all_that_peft_wraps() -> None:
    """With the wrapper's names, and with those that are left when its prefix is cut off, as trainers do."""
    for kind, model in wrapped_models():
        names = list(model.state_dict())
        assert all(map(is_adapter_tensor, names)), kind
        cut = [name.removeprefix("base_model.model.") for name in names]
        assert any(map(is_adapter_tensor, cut)), kind
        own = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert all(is_adapter_tensor(name.removeprefix("base_model.model.")) for name in own), kind


@pytest.mark.filterwarnings("ignore")
def test_an_unwrapped_model_is_plain(folder: Folder, tmp_path: Path) -> None:
    """Following the advice: merge_and_unload leaves plain names."""
    model = next(wrapped_models())[1]
    model.merge_and_unload().save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    assert read_combinable([LocalSource(tmp_path / "plain")]).layouts[0].tensors


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3"])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("which", [0, 1])
def test_empty_tensors(dtype: str, shape: tuple[int, ...], which: int, folder: Folder) -> None:
    whole = folder(files(PLAIN))
    hollow = folder(files({**PLAIN, "lm_head.weight": (dtype, shape)}))
    sources = [LocalSource(whole), LocalSource(hollow)]
    with pytest.raises(UnsupportedCheckpoint) as caught:
        read_combinable(sources if which else sources[::-1])
    message = str(caught.value)
    assert message.startswith(
        f"{hollow}/model.safetensors: tensor 'lm_head.weight' has shape {list(shape)}, so"
    )
    assert "1 of 3 tensors" in message
    assert "stage3_gather_16bit_weights_on_model_save" in message
    assert "zero_to_fp32.py" in message


def test_empty_buffers_and_scalars_are_no_empty_weights(folder: Folder) -> None:
    state: Specs = {
        "attn._extra_state": ("U8", (0,)),
        "n": ("I64", ()),
        "scale": ("F32", ()),
        "m": ("BOOL", (0,)),
    }
    read_combinable([LocalSource(folder(files({**PLAIN, **state})))])


QUANTISED: dict[str, Specs] = {
    "fp8": {"weight": ("F8_E4M3", (16, 16)), "weight_scale_inv": ("F32", (1, 1))},
    "fp8 by tensor": {"weight": ("F8_E4M3", (4,)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())},
    "fp8 e5m2": {"weight": ("F8_E5M2", (4, 4)), "weight_scale": ("BF16", (4, 1))},
    "fp8 fnuz": {"weight": ("F8_E4M3FNUZ", (4, 4)), "scale": ("F32", (1,))},
    "bnb 4 bit": {
        "weight": ("U8", (8, 1)),
        "weight.absmax": ("F32", (1,)),
        "weight.quant_map": ("F32", (16,)),
    },
    "bnb 4 bit in bf16": {
        "weight": ("BF16", (8, 1)),
        "weight.absmax": ("U8", (2,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
    },
    "bnb 8 bit": {"weight": ("I8", (4, 4)), "SCB": ("F32", (4,)), "weight_format": ("U8", ())},
    "gptq": {
        "qweight": ("I32", (2, 16)),
        "qzeros": ("I32", (1, 2)),
        "scales": ("F16", (1, 16)),
        "g_idx": ("I32", (16,)),
    },
    "awq": {"qweight": ("I32", (16, 2)), "qzeros": ("I32", (1, 2)), "scales": ("F16", (1, 16))},
    "compressed-tensors": {
        "weight_packed": ("I32", (16, 2)),
        "weight_scale": ("BF16", (16, 1)),
        "weight_shape": ("I64", (2,)),
    },
    "nvfp4": {
        "weight": ("U8", (16, 8)),
        "weight_scale": ("F8_E4M3", (16, 1)),
        "weight_scale_2": ("F32", ()),
    },
    "mxfp4": {"gate_up_proj_blocks": ("U8", (2, 8, 1, 16)), "gate_up_proj_scales": ("U8", (2, 8, 1))},
    "hqq": {"W_q": ("U8", (8, 16)), "scale": ("F16", (16, 1)), "zero": ("F16", (16, 1))},
    "mlx": {"weight": ("U32", (16, 2)), "scales": ("F16", (16, 1)), "biases": ("F16", (16, 1))},
    "mlc": {"q_weight": ("U32", (16, 2)), "q_scale": ("F16", (16, 1))},
    "quanto": {"weight._data": ("I8", (16, 16)), "weight._scale": ("BF16", (16, 1))},
    "eetq": {"weight": ("I8", (16, 16)), "weight_scales": ("F16", (16,))},
    "aqlm": {"codes": ("I16", (16, 2, 2)), "codebooks": ("F16", (2, 256, 1, 8)), "scales": ("F16", (16, 1))},
    "exl2": {"q_weight": ("I32", (8, 8)), "q_scale": ("I32", (1, 2)), "q_scale_max": ("F16", (1,))},
    "exl3": {"trellis": ("I16", (4, 4, 16)), "suh": ("F16", (16,)), "svh": ("F16", (16,))},
    "64 bits": {"weight": ("I64", (4, 4)), "weight_scale": ("F32", (4,))},
    "16 bits": {"weight": ("U16", (4, 4)), "weight_scale": ("F32", (4,))},
    "any names": {"p": ("I8", (8, 8)), "s": ("F32", (8,))},
    "any names, e4m3": {"p": ("F8_E4M3", (8, 8)), "s": ("F32", (1,))},
    "a scale in a module of its own": {"weight": ("I8", (8, 8)), "weight_quantizer._scale": ("F32", (1,))},
}

NEEDS_A_MODULE = ("any names", "any names, e4m3", "exl3", "a scale in a module of its own")
"""Nothing but the module that they share says that the tensors belong together."""


@pytest.mark.parametrize("scheme", QUANTISED)
@pytest.mark.parametrize("module", [MODULE + ".", ""], ids=["in a module", "at the top"])
def test_quantised_weights(scheme: str, module: str, folder: Folder) -> None:
    parts: Specs = {module + name: spec for name, spec in QUANTISED[scheme].items()}
    if not module and scheme in NEEDS_A_MODULE:
        return
    pair = quantised_pair(infos({**PLAIN, **parts}))
    assert pair is not None
    assert set(pair) <= {*parts, None}
    path = folder(files({**PLAIN, **parts}))
    with pytest.raises(UnsupportedCheckpoint, match="quantised weights cannot be combined") as caught:
        read_combinable([LocalSource(folder(files(PLAIN))), LocalSource(path)])
    assert str(caught.value).startswith(f"{path}/model.safetensors: tensor ")
    assert "dequantise" in str(caught.value)


@pytest.mark.parametrize(
    "buffers",
    [
        {"model.embeddings.position_ids": ("I64", (1, 512)), "model.embeddings.scale": ("F32", ())},
        {"h.0.attn.bias": ("U8", (1, 1, 64, 64)), "h.0.attn.masked_bias": ("F32", ())},
        {"h.0.attn.bias": ("BOOL", (1, 1, 64, 64)), "h.0.attn.masked_bias": ("F16", ())},
        {"layers.0.attn.causal_mask": ("U8", (1, 1, 64, 64)), "layers.0.attn.scale": ("F32", ())},
        {"bn.num_batches_tracked": ("I64", ()), "bn.weight": ("F32", (8,)), "bn.running_mean": ("F32", (8,))},
        {"attn.relative_position_index": ("I64", (49, 49)), "attn.bias_table": ("F32", (169, 3))},
        {"mlp.gate.tid2eid": ("I32", (1000, 6)), "mlp.gate.weight": ("BF16", (16, 8))},
        {"proj.weight": ("F8_E4M3", (8, 8)), "proj.bias": ("BF16", (8,))},
        {"gate.weight": ("F8_E5M2", (8, 8)), "gate.e_score_correction_bias": ("F32", (8,))},
        {"ids": ("I32", (64,)), "input_ids": ("U16", (64,)), "w": ("BF16", (4,)), "logit_scale": ("F32", ())},
        {"h.0.attn.tril": ("U8", (64, 64)), "h.0.attn.scale": ("F32", ())},
        {"attn.rel_buckets": ("I32", (64, 64)), "attn.rel_bias": ("F32", (32,))},
        {"vq.codebook.weight": ("F32", (16, 4)), "vq.usage": ("I64", (16,)), "vq.inited": ("I64", (1,))},
        {"mlp.weight": ("BF16", (8, 8)), "mlp.weight_scale": ("F32", (1,)), "attn.k_scale": ("F32", ())},
        {"router.scale": ("BF16", (4,)), "router.per_expert_scale": ("F32", (8,))},
    ],
)
def test_integers_and_scales_that_are_not_quantised_weights(buffers: Specs, folder: Folder) -> None:
    assert quantised_pair(infos({**PLAIN, **buffers})) is None
    read_combinable([LocalSource(folder(files({**PLAIN, **buffers})))])


def test_plain_models_of_many_architectures() -> None:
    """None of them is refused, in any float dtype, with the buffers that they save or used to save."""
    import transformers as t

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    configs = [
        t.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32),
        t.GPTNeoXConfig(**small, intermediate_size=16),
        t.BertConfig(**small, intermediate_size=16),
        t.DeepseekV3Config(
            **small, intermediate_size=16, moe_intermediate_size=8, n_routed_experts=4, n_group=1,
            topk_group=1, num_experts_per_tok=2, first_k_dense_replace=0, num_key_value_heads=2,
            kv_lora_rank=4, q_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        ),
        t.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4),
        t.Qwen3Config(**small, intermediate_size=16, num_key_value_heads=2, head_dim=8),
        t.GptOssConfig(**small, intermediate_size=16, num_key_value_heads=2, head_dim=8, num_local_experts=2),
    ]  # fmt: skip
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    for config in configs:
        kind = t.AutoModelForMaskedLM if config.model_type == "bert" else t.AutoModelForCausalLM
        with torch.device("meta"):
            state = kind.from_config(config, dtype=torch.bfloat16).state_dict()
        specs = {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
        assert not any(map(is_adapter_tensor, specs)), config.model_type
        for dtype in ("BF16", "F8_E4M3"):
            cast = {n: (dtype if d == "BF16" else d, shape) for n, (d, shape) in specs.items()}
            assert quantised_pair(infos(cast)) is None, config.model_type


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"bits": 4}}, ""),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
        ({"thinker_config": {"text_config": {"quantization_config": {"quant_method": "awq"}}}}, "awq"),
        ({"quantization": {"bits": 4, "group_size": 64}}, ""),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"text_config": {"hidden_size": 4}, "dtype": "float8_e4m3fn"}, None),
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_configuration_of_any_checkpoint(
    config: dict[str, object], method: str | None, which: int, folder: Folder
) -> None:
    assert quantisation_method(config) == method
    paths = [folder(files(PLAIN, config if k == which else None)) for k in range(3)]
    sources = [LocalSource(path) for path in paths]
    if method is None:
        assert len(read_combinable(sources).layouts) == 3
        return
    with pytest.raises(UnsupportedCheckpoint) as caught:
        read_combinable(sources)
    assert str(caught.value).startswith(
        f"{paths[which]}/config.json: has a quantization_config, so the weights are quantised"
    )
    assert "remove quantization_config" in str(caught.value)
    # as the message says
    (paths[which] / "config.json").write_bytes(files(PLAIN)["config.json"])
    assert len(read_combinable([LocalSource(path) for path in paths]).layouts) == 3


def test_many_alike_are_one_error(folder: Folder) -> None:
    quantised = {**PLAIN, "w": ("U8", (4, 4)), "w_scale": ("F32", (4,))}
    hollow = {**PLAIN, "w": ("BF16", (0,))}
    paths = [folder(files(specs)) for specs in (PLAIN, quantised, hollow, quantised, quantised)]
    with pytest.raises(UnsupportedCheckpoint) as caught:
        read_combinable([LocalSource(path) for path in paths])
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{paths[1]}/model.safetensors: tensor 'w' is U8 with its scale in 'w_scale': ")
    assert "(as in 2 more of the checkpoints)" in first
    assert second.startswith(f"{paths[2]}/model.safetensors: tensor 'w' has shape [0]")


def test_a_configuration_that_is_none(folder: Folder) -> None:
    path = folder(files(PLAIN) | {"config.json": b"[1]"})
    with pytest.raises(CorruptFile, match=r"config.json is not a JSON object"):
        read_combinable([LocalSource(path), LocalSource(folder(files(PLAIN)))])


@pytest.mark.parametrize("flat", [False, True])
def test_time_grows_with_the_tensors_only(flat: bool) -> None:
    """The largest models have 45,000 tensors; names without dots are one module."""
    specs: Specs = {}
    for number in range(22_500):
        name = f"w{number}" if flat else f"model.layers.{number // 400}.mlp.experts.{number % 400}.up.weight"
        specs |= {name: ("U8", (1,)), f"{name}_other": ("BF16", (64, 64))}
    tensors = infos(specs)
    start = time.process_time()
    assert quantised_pair(tensors) is None
    assert not any(map(is_adapter_tensor, tensors))
    assert time.process_time() - start < 3


def test_nobody_reads_checkpoints_that_are_combined_without_this_check() -> None:
    package = Path(__file__).parents[2] / "hubextrap"
    callers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.parent.name != "tensors"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id in ("read_layout", "read_layouts")
    }
    # logits may be mixed of quantised models; a checkpoint that was checked is compared with another one,
    # verify asks which files a loader takes, what went into a prediction was checked when that was made, and
    # the suite for executors reads the run that it has written
    allowed = {"opening.py", "api/verifying.py", "regrounding/checkpoint.py", "evaluation/recomputed.py"}
    allowed |= {"executors/testing_run.py", "mergekit_plugin.py"}  # which asks what mergekit reads
    assert callers == allowed


P = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_quantisers_write(layout: str, folder: Folder) -> None:
    pair = quantised_pair(infos({**PLAIN, **{P + name: spec for name, spec in LAYOUTS[layout].items()}}))
    assert pair is not None
    assert pair[0].startswith(P)
    path = folder(files({**PLAIN, **{P + name: spec for name, spec in LAYOUTS[layout].items()}}))
    with pytest.raises(UnsupportedCheckpoint, match="quantised weights cannot be combined"):
        read_combinable([LocalSource(path)])


@pytest.mark.parametrize(
    "specs",
    [
        {P + "weight._data._data": ("U8", (8, 2)), P + "weight._scale": ("BF16", (8, 1))},
        {P + "W_q": ("BF16", (4, 4)), P + "scale": ("BF16", (8, 1)), P + "zero": ("BF16", (8, 1))},
        {P + "weight": ("U8", (8, 18))},  # ggml's blocks, scales and all
    ],
)
def test_more_ways_to_pack(specs: Specs) -> None:
    assert quantised_pair(infos({**PLAIN, **specs})) is not None


@pytest.mark.parametrize(
    "specs",
    [
        {
            "m._extra_state": ("U8", (120,)),
            "m.layer_norm_weight": ("F32", (4,)),
            "m.fc1_weight": ("BF16", (8, 4)),
        },
        {"m.experts._extra_state0": ("U8", (120,)), "m.experts.weight0": ("BF16", (8, 4))},
        {"d2t": ("I32", (32,)), "logit_scale": ("F32", ())},
        {"vision.patch_positions": ("I32", (64,)), "vision.class_embedding": ("BF16", (8,))},
        {
            "ffn.gate.tid2eid": ("I32", (32, 2)),
            "ffn.gate.weight": ("BF16", (8, 4)),
            "ffn.gate.score_scale": ("F32", (1,)),
        },
        {"q.codebook_offsets": ("I32", (8,)), "q.scale": ("F32", (1,))},
        {"q.initted": ("U8", (1,)), "q.scale": ("F32", (1,))},
        {"m.step": ("I32", ()), "m.ema_scale": ("F32", ())},
        {"tokenizer.pieces": ("U8", (512,)), "tokenizer.scores": ("F32", (32,))},
    ],
    ids=lambda specs: next(iter(specs)),
)
def test_numbers_that_are_no_weights(specs: Specs) -> None:
    assert quantised_pair(infos({**PLAIN, **specs})) is None


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.layers.0.x.weight",
        "m.adaption_layer.weight",
        "vera_head.weight",
        "bone_embed.weight",
    ],
)
def test_names_that_are_no_adapters(name: str) -> None:
    assert not is_adapter_tensor(name)


def test_a_configuration_that_is_too_deep(folder: Folder) -> None:
    path = folder(files(PLAIN) | {"config.json": b"[" * 100_000})
    with pytest.raises(CorruptFile, match=r"config.json: not valid JSON"):
        read_combinable([LocalSource(path)])
