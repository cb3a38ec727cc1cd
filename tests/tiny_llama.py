"""A random Llama of some kilobytes, for what needs a real model class and a real tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "demo" / "data" / "rlvr-C" / "step_0"

SMALL = {
    "vocab_size": 28,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
"""The usual configuration of a model of some kilobytes."""


def tiny_llama(seed: int = 0, **config: Any) -> Any:
    """A LlamaForCausalLM for the demo's tokenizer; what ``config`` says is other than usual."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(SMALL | config)))


def save_tiny(model: Any, folder: Path, **how: Any) -> None:
    """Write the model and the demo's tokenizer, as a trainer does."""
    model.save_pretrained(folder, **how)
    for file in DEMO.glob("*token*"):
        shutil.copy(file, folder)
