"""A base model with an adapter on it, by peft's layers; the base itself stays as it is.

peft is handed a configuration and tensors that were checked here, and no folder to find others in.
Imports torch, transformers and peft inside functions.
"""

from __future__ import annotations

import warnings
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.names import part_of
from hubextrap.adapters.reading import read_adapters
from hubextrap.errors import CheckpointMismatch, UnsupportedCheckpoint
from hubextrap.extras import require
from hubextrap.foreign_data import shorten
from hubextrap.hub_access import reason
from hubextrap.tensors import DTYPES, LocalSource
from hubextrap.tensors.cache import downloaded_source
from hubextrap.tensors.local import check_folder
from hubextrap.trajectory.weights import ADAPTER_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel

    from hubextrap.adapters.config import AdapterConfig
    from hubextrap.tensors import CheckpointLayout, Source
    from hubextrap.trajectory import Checkpoint

_NAME = "default"
"""What peft calls an adapter."""
_SUFFIXES = {
    ("A", False): "lora_A.weight",
    ("B", False): "lora_B.weight",
    ("bias", False): "lora_B.bias",
    ("A", True): "lora_embedding_A",
    ("B", True): "lora_embedding_B",
}
"""How peft ends a factor's name, by its role and whether it is an embedding's."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What an adapter's files hold."""

    checkpoint: Checkpoint
    config: AdapterConfig
    factors: Mapping[str, torch.Tensor]
    """By the names that peft saves them under, without its prefix."""
    modules: tuple[str, ...]
    """The modules of the base that they belong to."""
    whole: Mapping[str, torch.Tensor]
    """Trained tensors of the base itself, by its names."""


def read_adapter(checkpoint: Checkpoint, *, weights: bool = True) -> AdapterWeights:
    """An adapter's tensors; ``weights`` False gives them on torch's device ``meta``, from the header alone.

    Raises:
        MissingExtra: torch or peft cannot be imported.
        UnsupportedCheckpoint: it is no LoRA in safetensors.
        CorruptFile: a file is not what peft writes, or not what the Hub lists.
        SourceError: a file could not be read.
    """
    require("adapters", "loading an adapter")
    with closing(_opened(checkpoint)) as source:
        (read,) = read_adapters([source])
        tensors = _tensors(source, read.layout) if weights else _without_values(read.layout)
    factors, whole = {}, {}
    modules: dict[str, None] = {}
    for name, tensor in tensors.items():
        part = part_of(name, f"{checkpoint.name}/{ADAPTER_FILE}")
        if part.role == "whole":
            whole[part.module] = tensor
        elif (suffix := _SUFFIXES.get((part.role, part.embedding))) is not None:
            modules[part.module] = None
            factors[f"{part.module}{'.base_layer' * part.depth}.{suffix}"] = tensor
    return AdapterWeights(checkpoint, read.config, factors, tuple(modules), whole)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own, whose parameters and buffers are those of ``model``."""
    shared = {id(one): one for one in chain(model.parameters(), model.buffers())}
    return deepcopy(model, shared)


def adapted(base: PreTrainedModel, adapter: AdapterWeights) -> PreTrainedModel:
    """A model of its own that adds an adapter to ``base``, whose weights the two share.

    Factors of two bytes a number are widened to float32, as peft does where it loads an adapter.

    Raises:
        CheckpointMismatch: the base has no such modules, or others of their shape.
        UnsupportedCheckpoint: peft cannot add it.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    name = adapter.checkpoint.name
    own = {id(one) for one in base.parameters()}
    model: Any = twin(base)
    _replace(model, adapter)
    if not adapter.factors:
        return model  # type: ignore[no-any-return]
    owners = tuple(f".{parameter.rpartition('.')[0]}" for parameter in adapter.config.target_parameters)
    config = LoraConfig(
        r=adapter.config.rank,
        lora_alpha=adapter.config.alpha,  # type: ignore[arg-type]
        use_rslora=adapter.config.rank_stabilised,
        rank_pattern=dict(adapter.config.rank_pattern),
        alpha_pattern=dict(adapter.config.alpha_pattern),
        fan_in_fan_out=adapter.config.transposed,
        lora_bias=any(name.endswith(".bias") for name in adapter.factors),
        ensure_weight_tying=adapter.config.content.get("ensure_weight_tying") is True,
        target_modules=[one for one in adapter.modules if not f".{one}".endswith(owners)] or None,
        target_parameters=list(adapter.config.target_parameters) or None,
        inference_mode=True,
    )
    try:
        # peft draws factors before it is given some, and warns of training and merging
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model, _NAME)
            for parameter in model.parameters():
                if id(parameter) not in own:
                    parameter.data = parameter.data.float()
            found: Any = set_peft_model_state_dict(model, dict(adapter.factors), _NAME)
    except Exception as error:  # peft raises nearly anything
        said = f"{name}: peft cannot add it to {type(base).__name__} {base.name_or_path}: {reason(error)}"
        raise UnsupportedCheckpoint(said, step=adapter.checkpoint.step) from error
    missing = [key for key in found.missing_keys if ".lora_" in key]
    if wrong := sorted([*found.unexpected_keys, *missing]):
        raise CheckpointMismatch(
            f"{name}: does not fit its base: {len(wrong)} factors have no counterpart, such as "
            f"{shorten(wrong[0])}; name the base that it was trained from",
            tensor=wrong[0],
            step=adapter.checkpoint.step,
        )
    return model.eval()  # type: ignore[no-any-return]


def _replace(model: Any, adapter: AdapterWeights) -> None:
    """Put what was trained whole in place of the base's, in ``model`` alone."""
    import torch

    there = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in adapter.whole.items():
        old = there.get(name)
        if old is None or old.shape != tensor.shape:
            what = "has no such tensor" if old is None else f"has {list(old.shape)}"
            raise CheckpointMismatch(
                f"{adapter.checkpoint.name}: tensor {shorten(repr(name))} is {list(tensor.shape)}, and its "
                f"base {what}; name the base that it was trained from",
                tensor=name,
                step=adapter.checkpoint.step,
            )
        owner, _, leaf = name.rpartition(".")
        new = torch.nn.Parameter(tensor.to(old.device, old.dtype), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, new)


def _opened(checkpoint: Checkpoint) -> LocalSource:
    """Its files, checked, where they lie: in its folder or in the Hub cache."""
    if checkpoint.repo is not None:
        return downloaded_source(checkpoint, weights=True)
    check_folder(checkpoint.path, adapter=True)
    return LocalSource(checkpoint.path, checkpoint.name)


def _tensors(source: Source, layout: CheckpointLayout) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    (file,) = layout.shards
    return load(source.read_file(file.file, file.size))


def _without_values(layout: CheckpointLayout) -> dict[str, torch.Tensor]:
    import torch

    return {
        name: torch.empty(info.shape, dtype=getattr(torch, DTYPES[info.dtype].torch_name), device="meta")
        for name, info in layout.tensors.items()
    }
