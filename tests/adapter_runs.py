"""Runs of small adapters, made and saved by peft itself, and what peft says they change of their base."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_llama import SMALL, save_tiny, tiny_llama

_EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""What `target_parameters` may name in ``mixtral`` and ``gpt_oss``."""


def tiny_model(architecture: str = "llama", seed: int = 0, **config: Any) -> Any:
    """A random model of some kilobytes: ``llama``; ``gpt2``, whose matrices are (in, out); ``mixtral`` and
    ``gpt_oss``, whose experts lie in one tensor, (experts, out, in) and (experts, in, out)."""
    import torch
    import transformers

    if architecture == "llama":
        return tiny_llama(seed, **config)
    torch.manual_seed(seed)
    if architecture == "gpt2":
        small = {"vocab_size": 28, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**(small | config)))
    if architecture == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**(SMALL | _EXPERTS | config)))
    assert architecture == "gpt_oss"
    small = SMALL | _EXPERTS | {"head_dim": 8}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**(small | config)))
    for name, parameter in model.named_parameters():  # its own __init__ leaves them as the memory was
        _fill(parameter, name, seed, 0.1)
    return model


@contextmanager
def without_warnings() -> Iterator[None]:
    """What peft and transformers say of each other's versions is none of the tests'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@without_warnings()
def write_adapter_run(
    root: Path,
    steps: Sequence[int],
    *,
    architecture: str = "llama",
    rank: int | Mapping[int, int] = 4,
    dtype: str = "float32",
    base_dtype: str = "float32",
    seed: int = 0,
    model: Mapping[str, Any] | None = None,
    **lora: Any,
) -> Path:
    """Write ``root``/base and ``root``/step_N of a run whose factors move smoothly with the step.

    Step 0, where it is asked for, is an adapter with B = 0, as training begins.

    Args:
        steps: increasing.
        rank: of all steps, or of each.
        dtype: torch's name for what the adapters are stored in.
        base_dtype: the base's.
        model: fields of the base's configuration.
        lora: fields of `peft.LoraConfig`; q_proj, v_proj and down_proj are its target_modules otherwise
            (of ``gpt2`` c_attn and c_proj).
    """
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_model(architecture, seed, **(model or {})).to(getattr(torch, base_dtype))
    fused = {} if architecture in ("llama", "gpt2") else {"save_original_format": False}
    save_tiny(base, root / "base", **fused)
    for step in steps:
        fresh = AutoModelForCausalLM.from_pretrained(root / "base", dtype=getattr(torch, base_dtype))
        at = rank if isinstance(rank, int) else rank[step]
        _write_adapter(fresh, root / f"step_{step}", step / max(steps), at, dtype, seed, architecture, lora)
    return root


@without_warnings()
def merged(root: Path, step: int, dtype: str = "float64") -> dict[str, Any]:
    """The weights that peft's own `merge_and_unload` makes of a step, computed in ``dtype``."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=getattr(torch, dtype))
    return dict(PeftModel.from_pretrained(base, str(root / f"step_{step}")).merge_and_unload().state_dict())


@without_warnings()
def changes(root: Path, step: int, dtype: str = "float64") -> dict[str, Any]:
    """What a step changes of the base, computed by peft in ``dtype``: of each tensor that differs."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=getattr(torch, dtype)).state_dict()
    differences = {name: tensor - base[name] for name, tensor in merged(root, step, dtype).items()}
    return {name: difference for name, difference in differences.items() if difference.abs().max() > 0}


def _write_adapter(
    base: Any,
    folder: Path,
    time: float,
    rank: int,
    dtype: str,
    seed: int,
    architecture: str,
    lora: Mapping[str, Any],
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "c_proj"] if architecture == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    usual: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }
    adapted = get_peft_model(base, LoraConfig(**(usual | dict(lora))))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            _move(parameter, name, time, seed)
            parameter.data = parameter.data.to(getattr(torch, dtype))
    adapted.save_pretrained(str(folder))


def _move(parameter: Any, name: str, time: float, seed: int) -> None:
    """Put one trained parameter where it is at a time from 0 to 1."""
    import torch

    start = parameter.data.clone()
    _fill(parameter, name, seed, 0.1)
    towards = parameter.data.clone()
    _fill(parameter, name, seed + 1, 0.02)
    path = time * towards + time**2 * parameter.data
    if "lora_" not in name:
        parameter.data = start + path
    elif ".lora_B" in name or ".lora_embedding_A" in name:
        parameter.data = path
    else:
        _fill(parameter, name, seed + 2, 0.5)
        parameter.data = parameter.data + path
    assert torch.isfinite(parameter.data).all()


def _fill(parameter: Any, name: str, seed: int, scale: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    parameter.data = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)
