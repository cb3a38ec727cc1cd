"""The adapters of a model in training: which parameters are LoRA's factors, and what cannot jump at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from hubextrap.adapters.names import PREFIX
from hubextrap.errors import MethodError
from hubextrap.foreign_data import shorten
from hubextrap.regrounding.parameters import fsdp1_strategies, is_dtensor
from hubextrap.regrounding.products import FactorPair
from hubextrap.tensors.combinable import is_adapter_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_ORDINARY = re.compile(r"\.lora_B\.[^.]+\.bias$|\.trainable_tokens_delta\.")
"""Parts of adapters that the weights are linear in."""
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+|_fsdp_wrapped_module)(?=\.|$)")
_INSTEAD = "train a plain LoRA or the whole model, or train without the callback"


def factor_pairs(model: nn.Module) -> tuple[FactorPair, ...]:
    """Every product of two factors that both are trained, in the model's order; () without adapters.

    A factor whose other one is frozen is an ordinary tensor: the product is linear in it.

    Raises:
        MethodError: an adapter that is no plain LoRA of matrices, or whose factors are sharded or shared.
    """
    _refuse_other_kinds(model)
    trained = {id(tensor): name for name, tensor in model.named_parameters() if tensor.requires_grad}
    pairs: dict[str, FactorPair] = {}
    placed: dict[int, str] = {}
    ordinary = set()
    for place, module, adapter, a, b in _layers(model):
        names = [name for name in (trained.get(id(a)), trained.get(id(b))) if name is not None]
        if not names and not fsdp1_strategies(model):
            continue
        _refuse_layer(model, place, module, adapter, (a, b))
        if len(names) < 2:
            ordinary.update(names)
            continue
        pair = _pair(place, module, adapter, names, int(module.r[adapter]))
        if pair.name in pairs:
            raise MethodError(f"{place}: two adapters are trained at once on it; train one of them")
        for tensor in (a, b):
            if (other := placed.setdefault(tensor.data_ptr(), place)) != place:
                raise MethodError(
                    f"{place}: shares a factor with {other}, so no jump is right for both products; "
                    f"{_INSTEAD}"
                )
        pairs[pair.name] = pair
    known = ordinary | {part for pair in pairs.values() for part in (pair.a, pair.b)}
    for name in trained.values():
        if name not in known and not _ORDINARY.search(name) and is_adapter_tensor(_bare(name)):
            raise MethodError(
                f"parameter {shorten(repr(name))} is part of an adapter that is not peft's LoRA of a matrix, "
                f"so a line through it is none through the weights; {_INSTEAD}"
            )
    return tuple(pairs.values())


def _layers(model: nn.Module) -> Iterator[tuple[str, Any, str, Any, Any]]:
    """(module's name, module, adapter, A, B) of what has LoRA's factors, trained or not."""
    for place, module in model.named_modules():
        for keys in _FACTORS:
            held_a, held_b = (getattr(module, key, None) for key in keys)
            kinds = (nn.ModuleDict, nn.ParameterDict)
            if isinstance(held_a, kinds) and isinstance(held_b, kinds):
                for adapter in held_a:
                    if adapter in held_b:
                        a, b = (getattr(one[adapter], "weight", one[adapter]) for one in (held_a, held_b))
                        yield place, module, adapter, a, b


def _pair(place: str, module: Any, adapter: str, names: list[str], rank: int) -> FactorPair:
    target = getattr(module, "parameter_name", "weight")
    return FactorPair(
        name=f"{_bare(place)}.{target}",
        a=names[0],
        b=names[1],
        rank=rank,
        scaling=float(module.scaling[adapter]),
        experts=int(getattr(module, "num_experts", 1)) if hasattr(module, "parameter_name") else 1,
        embedding=".lora_embedding_A." in names[0],
    )


def _bare(name: str) -> str:
    """A name without what wrappers put into it."""
    return _WRAPPED.sub("", name.removeprefix("module.").removeprefix(PREFIX))


def _refuse_other_kinds(model: nn.Module) -> None:
    for module in model.modules():
        configs: Mapping[str, Any] = getattr(module, "peft_config", None) or {}
        for adapter, config in configs.items() if isinstance(configs, dict) else ():
            kind = getattr(config, "peft_type", "LORA")
            said = str(getattr(kind, "value", kind))
            if said != "LORA":
                raise MethodError(
                    f"adapter {shorten(repr(adapter))} is of peft type {shorten(said)}: only LoRA's products "
                    f"can jump; {_INSTEAD}"
                )


def _refuse_layer(model: nn.Module, place: str, module: Any, adapter: str, factors: tuple[Any, Any]) -> None:
    where = place or type(module).__name__
    if (variant := getattr(module, "lora_variant", {}).get(adapter)) is not None:
        kind = type(variant).__name__
        raise MethodError(
            f"{where}: its adapter is a variant of LoRA, {shorten(kind)}, whose weights are not linear in "
            f"B·A; {_INSTEAD}"
        )
    if fsdp1_strategies(model) or any(is_dtensor(factor) for factor in factors):
        raise MethodError(
            f"{where}: a rank holds only part of LoRA's factors, and a jump in the product B·A needs them "
            "whole; train the adapter under DDP"
        )
    if any(factor.dim() != 2 for factor in factors):
        raise MethodError(
            f"{where}: the factors of a {type(module).__name__} are no matrices, and only products of "
            f"matrices can jump; leave it out of target_modules, or {_INSTEAD}"
        )
