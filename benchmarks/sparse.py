"""Checkpoints of the size of large models as sparse files: real headers, no data on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from hubextrap.tensors import build_header

SHARD = 4_300_000_000
"""Bytes of a shard at most, as the models are published."""

Tensor = tuple[str, tuple[int, ...]]


def sparse_run(root: Path, tensors: list[Tensor], count: int, size_at_most: int = SHARD) -> int:
    """Checkpoints ``step_10`` … ``step_<10·count>`` in bf16; returns how many shards each has.

    Args:
        size_at_most: bytes of a shard.
    """
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = _bytes([tensor])
        if not shards or size > room:
            shards.append([])
            room = size_at_most
        shards[-1].append(tensor)
        room -= size
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    headers = [build_header([(name, "BF16", shape) for name, shape in shard], {}) for shard in shards]
    index = {
        "metadata": {"total_size": _bytes(tensors)},
        "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard},
    }
    for step in range(10, 10 * count + 1, 10):
        folder = root / f"step_{step}"
        folder.mkdir(parents=True)
        for file, header, shard in zip(names, headers, shards, strict=True):
            with (folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + _bytes(shard))
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    return len(shards)


def deepseek_v3(layers: int = 61) -> Iterator[Tensor]:
    """671B, 45,395 tensors; without the layer for multi-token prediction and without scales."""
    hidden = 7168
    yield from _ends(129_280, hidden)
    for layer in range(layers):
        p = f"model.layers.{layer}."
        yield from _norms(p, hidden)
        yield f"{p}self_attn.q_a_proj.weight", (1536, hidden)
        yield f"{p}self_attn.q_a_layernorm.weight", (1536,)
        yield f"{p}self_attn.q_b_proj.weight", (24_576, 1536)
        yield f"{p}self_attn.kv_a_proj_with_mqa.weight", (576, hidden)
        yield f"{p}self_attn.kv_a_layernorm.weight", (512,)
        yield f"{p}self_attn.kv_b_proj.weight", (32_768, 512)
        yield f"{p}self_attn.o_proj.weight", (hidden, 16_384)
        if layer < 3:
            yield from _mlp(f"{p}mlp.", hidden, 18_432)
            continue
        yield f"{p}mlp.gate.e_score_correction_bias", (256,)
        yield from _experts(p, hidden, 2048, 256)
        yield from _mlp(f"{p}mlp.shared_experts.", hidden, 2048)


def qwen3_30b_a3b(layers: int = 48) -> Iterator[Tensor]:
    """30.5B, 18,867 tensors."""
    hidden = 2048
    yield from _ends(151_936, hidden)
    for layer in range(layers):
        p = f"model.layers.{layer}."
        yield from _norms(p, hidden)
        for name, rows in (("q", 4096), ("k", 512), ("v", 512)):
            yield f"{p}self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{p}self_attn.o_proj.weight", (hidden, 4096)
        yield f"{p}self_attn.q_norm.weight", (128,)
        yield f"{p}self_attn.k_norm.weight", (128,)
        yield from _experts(p, hidden, 768, 128)


def llama_7b(layers: int = 32) -> Iterator[Tensor]:
    """6.7B, 291 tensors."""
    hidden = 4096
    yield from _ends(32_000, hidden)
    for layer in range(layers):
        p = f"model.layers.{layer}."
        yield from _norms(p, hidden)
        for name in "qkvo":
            yield f"{p}self_attn.{name}_proj.weight", (hidden, hidden)
        yield from _mlp(f"{p}mlp.", hidden, 11_008)


def _ends(vocabulary: int, hidden: int) -> Iterator[Tensor]:
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "lm_head.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)


def _norms(prefix: str, hidden: int) -> Iterator[Tensor]:
    yield f"{prefix}input_layernorm.weight", (hidden,)
    yield f"{prefix}post_attention_layernorm.weight", (hidden,)


def _experts(prefix: str, hidden: int, inner: int, count: int) -> Iterator[Tensor]:
    yield f"{prefix}mlp.gate.weight", (count, hidden)
    for expert in range(count):
        yield from _mlp(f"{prefix}mlp.experts.{expert}.", hidden, inner)


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[Tensor]:
    yield f"{prefix}gate_proj.weight", (inner, hidden)
    yield f"{prefix}up_proj.weight", (inner, hidden)
    yield f"{prefix}down_proj.weight", (hidden, inner)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(2 * math.prod(shape) for _, shape in tensors)
