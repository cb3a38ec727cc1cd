"""Checkpoints to measure on: the shapes of Qwen2.5-1.5B with its own lm_head, random bf16 weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from hubextrap.tensors import build_header

WORK = Path(__file__).parent / "work"
HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY = 1536, 12, 2, 8960, 151936


def trajectory(name: str, layers: int, count: int, vocabulary: int = VOCABULARY) -> Path:
    """A folder with ``step_10`` … ``step_<10·count>``, made once and kept between runs."""
    root = WORK / name
    for number in range(1, count + 1):
        folder = root / f"step_{10 * number}"
        if (folder / "config.json").exists():  # written last
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder / "model.safetensors", layers, vocabulary, number)
        (folder / "config.json").write_text(json.dumps(_config(layers, vocabulary)))
    os.sync()  # or the kernel writes the inputs out while the first case is measured
    return root


def repeated(source: Path, name: str, count: int) -> Path:
    """``count`` checkpoints that are links to those of ``source`` in turn: many inputs, few bytes on disk."""
    root = WORK / name
    real = sorted(source.glob("step_*"))
    for number in range(1, count + 1):
        folder = root / f"step_{10 * number}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in real[number % len(real)].iterdir():
            link = folder / file.name
            if not link.exists():
                link.hardlink_to(file)
    return root


def parameters(folder: Path) -> int:
    """Weights of a checkpoint, all bf16."""
    return (folder / "model.safetensors").stat().st_size // 2


def shapes(layers: int, vocabulary: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Qwen2 model, in the order in which transformers writes them."""
    head = HIDDEN // HEADS
    found: list[tuple[str, tuple[int, ...]]] = [("lm_head.weight", (vocabulary, HIDDEN))]
    found.append(("model.embed_tokens.weight", (vocabulary, HIDDEN)))
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found += [
            (f"{prefix}.input_layernorm.weight", (HIDDEN,)),
            (f"{prefix}.mlp.down_proj.weight", (HIDDEN, INNER)),
            (f"{prefix}.mlp.gate_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.mlp.up_proj.weight", (INNER, HIDDEN)),
            (f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)),
            (f"{prefix}.self_attn.k_proj.bias", (KV_HEADS * head,)),
            (f"{prefix}.self_attn.k_proj.weight", (KV_HEADS * head, HIDDEN)),
            (f"{prefix}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)),
            (f"{prefix}.self_attn.q_proj.bias", (HIDDEN,)),
            (f"{prefix}.self_attn.q_proj.weight", (HIDDEN, HIDDEN)),
            (f"{prefix}.self_attn.v_proj.bias", (KV_HEADS * head,)),
            (f"{prefix}.self_attn.v_proj.weight", (KV_HEADS * head, HIDDEN)),
        ]
    return [*found, ("model.norm.weight", (HIDDEN,))]


def _write_weights(path: Path, layers: int, vocabulary: int, number: int) -> None:
    block = 2**24
    base = torch.Generator().manual_seed(0)
    drift = torch.Generator().manual_seed(number)
    noise = torch.randn(block, generator=base) * 0.02
    step = torch.randn(block, generator=drift) * 0.0005
    # One block of noise is used over and over: what matters here is bytes, not their randomness.
    weights = (noise + number * step).to(torch.bfloat16)
    with path.open("wb") as file:
        file.write(build_header([(name, "BF16", shape) for name, shape in shapes(layers, vocabulary)], {}))
        for _, shape in shapes(layers, vocabulary):
            left = torch.Size(shape).numel()
            while left:
                part = weights[: min(left, block)]
                file.write(part.view(torch.uint8).numpy().data)
                left -= len(part)


def _config(layers: int, vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
