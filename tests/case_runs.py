"""Runs like those of public reports, a few hundred bytes each, for tests/cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def random(seed: int, *shape: int) -> torch.Tensor:
    """Normal float32 numbers that follow from the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(step: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """A whole model of 108 weights that moves along a line."""
    return {
        "model.embed_tokens.weight": (random(0, 8, 4) + step * 1e-3).to(dtype),
        "model.layers.0.self_attn.q_proj.weight": (random(1, 8, 4) + step * 1e-3).to(dtype),
        "model.norm.weight": torch.ones(4).to(dtype),
        "lm_head.weight": (random(2, 8, 4) + step * 1e-3).to(dtype),
    }


def write_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
    *,
    file: str = "model.safetensors",
) -> Path:
    """A checkpoint's folder, as `save_pretrained` lays it out; its path.

    Args:
        config: what ``config.json`` says beside, or instead of, ``CONFIG``.
        beside: more files, by their path in the folder; the tokenizer is always there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / file, {"format": "pt"})
    files = {"config.json": json.dumps(CONFIG | dict(config or {})), "tokenizer.json": "{}"}
    for path, text in (files | dict(beside or {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def write_run(
    root: Path,
    steps: Sequence[int] = (100, 200),
    tensors: Callable[[int], Mapping[str, torch.Tensor]] = tiny,
    name: str = "step_{step}",
    **how: Any,
) -> Path:
    """A run's folder with one of each step; ``how`` is ``write_model``'s. Its path."""
    for step in steps:
        write_model(root / name.format(step=step), tensors(step), **how)
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of all files under a folder, by their paths in it: what `LocalHub.commit` takes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def recipe_for(place: Path | str, file: Path, target_step: int = 300, **sections: Any) -> Path:
    """Write a recipe, two_point to a step of the run at ``place``, with more sections; its path."""
    content = {
        "trajectory": {"repo": str(place)},
        "merge_method": "two_point",
        "parameters": {"target_step": target_step},
    }
    file.write_text(json.dumps(content | sections))  # which is YAML too
    return file
