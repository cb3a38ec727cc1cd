"""What is measured on: checkpoints of the shapes of Qwen2.5-1.5B, random bf16 weights, and their recipes."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from hubextrap.tensors import build_header

LAYERS = 28
HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY = 1536, 12, 2, 8960, 151936
SMALL_VOCABULARY = 70_000


@dataclass(frozen=True, slots=True)
class Bench:
    """What the command line asks for."""

    work: Path
    """Folder for inputs, which are kept, and outputs, which are not."""
    layers: int = LAYERS
    rounds: int | None = None
    other: Path | None = None
    """Another checkout of hubextrap, to be run in turn with this one."""

    def times(self, rounds: int) -> int:
        """Rounds of a case that by itself would take so many."""
        return self.rounds or rounds

    def large(self) -> Path:
        """1.78B parameters, K = 4."""
        vocabulary = VOCABULARY * self.layers // LAYERS
        return trajectory(self.work / f"large-{self.layers}", self.layers, 4, vocabulary)

    def small(self, count: int) -> Path:
        """0.45B parameters."""
        layers, vocabulary = max(1, self.layers * 5 // LAYERS), SMALL_VOCABULARY * self.layers // LAYERS
        return trajectory(self.work / f"small-{self.layers}", layers, count, vocabulary)

    def tiny(self) -> Path:
        """Enough for the loops to run."""
        return trajectory(self.work / "tiny", 1, 2, 1000)

    def fresh(self, name: str) -> Path:
        """A path in the work folder with nothing at it."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def trajectory(root: Path, layers: int, count: int, vocabulary: int) -> Path:
    """A folder with ``step_10`` … ``step_<10·count>``, made once and kept between runs."""
    for number in range(1, count + 1):
        folder = root / f"step_{10 * number}"
        if (folder / "config.json").exists():  # written last
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder / "model.safetensors", layers, vocabulary, number)
        (folder / "config.json").write_text(json.dumps(_config(layers, vocabulary)))
    os.sync()  # or the kernel writes the inputs out while the first case is measured
    return root


def repeated(source: Path, root: Path, count: int) -> Path:
    """``count`` checkpoints that are links to those of ``source`` in turn: many inputs, few bytes on disk."""
    real = sorted(source.glob("step_*"))
    for number in range(1, count + 1):
        folder = root / f"step_{10 * number}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in real[number % len(real)].iterdir():
            link = folder / file.name
            if not link.exists():
                link.hardlink_to(file)
    return root


def billions(root: Path) -> float:
    """Weights of each checkpoint, all bf16, in 1e9."""
    return (root / "step_10" / "model.safetensors").stat().st_size / 2e9


def weight_files(root: Path, count: int) -> list[Path]:
    """Those of the first ``count`` checkpoints."""
    return [root / f"step_{10 * number}" / "model.safetensors" for number in range(1, count + 1)]


def recipe(path: Path, repo: object, count: int) -> Path:
    """least_squares (two_point at K = 2) over the first ``count`` checkpoints, written to ``path``."""
    content = {
        "trajectory": {"repo": str(repo), "steps": {"max": 10 * count}},
        "merge_method": "two_point" if count == 2 else "least_squares",
        "parameters": {"target_step": 15 * count},
        "out_dtype": "bfloat16",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def hub_with(bench: Bench, root: Path) -> Iterator[dict[str, str]]:
    """A loopback Hub with the run as ``me/run``; the variables with which it is read."""
    from hubextrap.localhub import LocalHub

    with LocalHub(bench.fresh("hub"), tokens={"hf_bench": "me"}) as hub:
        hub.create_repo("me/run")
        for folder in sorted(root.iterdir()):
            hub.commit("me/run", {file.name: file for file in folder.iterdir()}, revision=folder.name)
        yield {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(bench.fresh("hf")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    bench.fresh("hub")
    bench.fresh("hf")


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
    write_tensors(path, shapes(layers, vocabulary), number)


def write_tensors(path: Path, tensors: list[tuple[str, tuple[int, ...]]], number: int) -> None:
    """A file of bf16 noise, which differs a little from one ``number`` to another."""
    block = 2**24
    noise = np.random.default_rng(0).standard_normal(block, np.float32) * 0.02
    step = np.random.default_rng(number).standard_normal(block, np.float32) * 0.0005
    # One block of noise is used over and over: what matters here is bytes, not their randomness.
    weights = ((noise + number * step).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with path.open("wb") as file:
        file.write(build_header([(name, "BF16", shape) for name, shape in tensors], {}))
        for _, shape in tensors:
            left = math.prod(shape)
            while left:
                part = weights[: min(left, block)]
                file.write(part.data)
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
