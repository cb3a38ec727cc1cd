"""What quantisers leave in a module that had one weight, and that weight made quantised here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Specs = dict[str, tuple[str, tuple[int, ...]]]
"""Name in the module → safetensors dtype, shape."""

LAYOUTS: Mapping[str, Specs] = {
    "torchao int8": {"_weight_qdata": ("I8", (16, 16)), "_weight_scale": ("BF16", (16,))},
    "torchao float8": {"_weight_qdata": ("F8_E4M3", (16, 16)), "_weight_scale": ("F32", (16, 1))},
    "torchao int4": {
        "_weight_qdata": ("I8", (16, 8)),
        "_weight_scale": ("BF16", (1, 16)),
        "_weight_zero_point": ("I8", (1, 16)),
    },
    "torchao int4 tiled": {
        "_weight_qdata": ("I32", (2, 1, 32, 4)),
        "_weight_scale_and_zero": ("BF16", (1, 16, 2)),
    },
    "torchao, older": {
        "weight.tensor_impl.int_data": ("I8", (16, 16)),
        "weight.tensor_impl.scale": ("BF16", (16,)),
        "weight.tensor_impl.zero_point": ("I64", (16,)),
    },
    "compressed-tensors int8": {"weight": ("I8", (16, 16)), "weight_scale": ("BF16", (16, 1))},
    "compressed-tensors nvfp4": {
        "weight_packed": ("U8", (16, 8)),
        "weight_scale": ("F8_E4M3", (16, 1)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
    },
    "modelopt nvfp4": {
        "weight": ("U8", (16, 8)),
        "weight_scale": ("F8_E4M3", (16, 1)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    },
    "quark mxfp4": {"weight": ("U8", (32, 16)), "weight_scale": ("U8", (32, 1))},
    "fused experts, mxfp4": {"w13_weight": ("U8", (2, 16, 8)), "w13_weight_scale": ("U8", (2, 16, 1))},
    "ComfyUI": {"weight": ("F8_E4M3", (16, 16)), "scale_weight": ("F32", ()), "scale_input": ("F32", ())},
    "Mistral": {"weight": ("F8_E4M3", (16, 16)), "qscale_weight": ("F32", ()), "qscale_act": ("F32", ())},
    "fbgemm": {
        "weight": ("F8_E4M3", (16, 16)),
        "weight_scale": ("F32", (16, 1)),
        "input_scale_ub": ("F32", (1,)),
    },
    "bitsandbytes nf4": {
        "weight": ("U8", (16, 1)),
        "weight.absmax": ("F32", (2,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (17,)),
    },
    "bitsandbytes int8": {"weight": ("I8", (16, 16)), "SCB": ("F32", (16,)), "weight_format": ("U8", ())},
    "AWQ": {"qweight": ("I32", (16, 2)), "qzeros": ("I32", (1, 2)), "scales": ("F16", (1, 16))},
    "GPTQ": {
        "qweight": ("I32", (2, 16)),
        "qzeros": ("I32", (1, 2)),
        "scales": ("F16", (1, 16)),
        "g_idx": ("I32", (16,)),
    },
    "Marlin": {"B": ("I32", (1, 32)), "s": ("F16", (1, 16)), "workspace": ("I32", (2,))},
    "QuIP#": {
        "Qidxs": ("I64", (16, 2)),
        "SU": ("F16", (16,)),
        "SV": ("F16", (16,)),
        "Wscale": ("F32", ()),
        "codebook_id": ("I64", ()),
    },
    "VPTQ": {"indices": ("U16", (1, 160, 4)), "centroids.weight": ("BF16", (1, 256))},
    "AQLM": {"codes": ("I16", (16, 2, 2)), "codebooks": ("F16", (2, 16, 1, 8)), "scales": ("F16", (16, 1))},
    "HIGGS": {
        "weight": ("I16", (8, 16)),
        "scales": ("BF16", (1, 16)),
        "tables": ("BF16", (16, 2)),
        "tables2": ("F32", (2, 2, 2)),
    },
    "HQQ": {"W_q": ("U8", (8, 16)), "scale": ("F16", (16, 1)), "zero": ("F16", (16, 1))},
    "EETQ": {"weight": ("I8", (16, 16)), "weight_scales": ("F16", (16,))},
    "BitNet": {"weight": ("U8", (4, 16)), "weight_scale": ("BF16", (1,))},
    "quanto": {"weight._data": ("I8", (16, 16)), "weight._scale": ("BF16", (16, 1))},
    "MLX": {"weight": ("U32", (16, 2)), "scales": ("F16", (16, 1)), "biases": ("F16", (16, 1))},
    "MLX mxfp4": {"weight": ("U32", (16, 4)), "scales": ("U8", (16, 1))},
    "FP-Quant": {
        "qweight": ("U8", (16, 16)),
        "scales": ("U8", (16, 1)),
        "weight_global_scale": ("F32", (1,)),
        "forward_hadamard_matrix": ("BF16", (8, 8)),
    },
    "Four Over Six": {
        "quantized_weight_values": ("U8", (16, 8)),
        "quantized_weight_scale_factors": ("F8_E4M3", (16,)),
        "quantized_weight_amax": ("F32", (1,)),
    },
    "Transformer Engine": {
        "weight_rowwise_data": ("U8", (32, 32)),
        "weight_rowwise_scale_inv": ("U8", (32, 1)),
    },
    "DeepSeek-V4's experts": {"weight": ("I8", (16, 16)), "scale": ("F8_E8M0", (16, 1))},
    "MXFP8": {"weight": ("F8_E4M3", (16, 32)), "weight_exponents": ("F8_E8M0", (16, 1))},
    "SmoothQuant": {"weight": ("I8", (16, 16)), "a": ("F32", ()), "bias": ("F32", (16,))},
    "SqueezeLLM": {"qweight": ("I32", (2, 16)), "lookup_table": ("F16", (16, 16))},
    "exllama 3": {"trellis": ("I16", (4, 4, 16)), "suh": ("F16", (16,)), "svh": ("F16", (16,))},
}
"""Of one weight, by the program that wrote it; small, and otherwise as they are found on the Hub."""
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def fp8_blocks(
    weight: torch.Tensor, block: tuple[int, int] = (128, 128), scales: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (…, rows, columns) as DeepSeek stores it: float8, and a scale for each block.

    Scales other than float32 are powers of two, as DeepSeek-V3.1's are.
    """
    rows, columns = weight.shape[-2:]
    high, wide = -(-rows // block[0]), -(-columns // block[1])
    padded = torch.zeros(*weight.shape[:-2], high * block[0], wide * block[1])
    padded[..., :rows, :columns] = weight.float()
    tiles = padded.reshape(*weight.shape[:-2], high, block[0], wide, block[1])
    scale = tiles.abs().amax(dim=(-3, -1)).clamp(min=1e-9) / 448
    if scales != torch.float32:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    factors = scale.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    stored = (padded / factors)[..., :rows, :columns].to(torch.float8_e4m3fn)
    return stored, scale.to(scales)


def fp8_floats(
    weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = (128, 128)
) -> torch.Tensor:
    """What `fp8_blocks` stored, in float32."""
    rows, columns = weight.shape[-2:]
    factors = scale.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return weight.float() * factors[..., :rows, :columns]


def fp8_config(block: tuple[int, int] = (128, 128), **more: Any) -> dict[str, Any]:
    """What config.json says of `fp8_blocks`."""
    stated = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block),
    }
    return {"quantization_config": stated | more}


def mxfp4_of(experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts (E, columns, rows) as gpt-oss stores them: (E, rows, columns/32, 16), (E, rows, columns/32)."""
    rows = experts.float().transpose(1, 2)
    tiles = rows.reshape(*rows.shape[:2], -1, 32)
    exponent = torch.ceil(torch.log2(tiles.abs().amax(-1).clamp(min=1e-9) / 6))
    codes = (tiles / torch.exp2(exponent)[..., None])[..., None].sub(_FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + 127).to(torch.uint8)


def mxfp4_floats(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What `mxfp4_of` stored, in bfloat16."""
    numbers = torch.stack([_FP4[(blocks & 15).int()], _FP4[(blocks >> 4).int()]], -1).flatten(-2)
    scaled = numbers * torch.exp2(scales.float() - 127)[..., None]
    return scaled.flatten(-2).transpose(1, 2).contiguous().bfloat16()
