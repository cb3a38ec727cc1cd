"""Adapters beside their base: every tensor that they change has to be there, and says which way it lies.

A file of factors does not say whether the base keeps a matrix as (out, in) or (in, out): peft asks the class
of the layer. So where the shape is that of the transposed product, the product is transposed; of square
matrices the others of the same module or name tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hubextrap.errors import CheckpointMismatch
from hubextrap.foreign_data import shorten
from hubextrap.tensors.tied import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS

if TYPE_CHECKING:
    from hubextrap.adapters.reading import Adapter, Factors
    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

_TIED = (
    "predict the adapter itself (as: adapter, and steps.min: 1 where the head is trained whole), or give by "
    "trajectory.base a copy whose config.json says tie_word_embeddings: false and that holds both"
)
_TRANSPOSED_EXPERTS = ("gpt_oss", "aria", "openai_privacy_filter")
"""Model types whose experts lie as (experts, in, out) in transformers: `is_transposed` of their classes."""


def fitted(adapter: Adapter, base: CheckpointLayout, config: Mapping[str, Any]) -> Adapter:
    """The adapter with each product the way in which the base keeps the tensor.

    Args:
        base: its layout.
        config: its config.json.

    Raises:
        CheckpointMismatch: the base has not all of the tensors, or has them in another shape.
    """
    types = {config.get("model_type"), *(_type_of(part) for part in config.values())}
    turned: dict[str, bool] = {}
    for name, factors in adapter.factors.items():
        info = _tensor_of(base, name, adapter.name)
        if factors.layout == "column" or factors.shape != _across(factors.shape):
            turned[name] = _is_turned(factors, info, adapter.name, base.name)
        elif factors.shape != info.shape:
            raise _other_shape(info, factors.shape, adapter.name, base.name)
    for name, factors in adapter.factors.items():
        if name not in turned:
            alike = [known for other, known in turned.items() if _are_alike(name, other, factors)]
            experts = factors.layout == "experts_swapped" and not types.isdisjoint(_TRANSPOSED_EXPERTS)
            turned[name] = alike[0] if alike else experts
    for name, info in adapter.whole.items():
        own = _tensor_of(base, name, adapter.name)
        if own.shape != info.shape:
            raise _other_shape(own, info.shape, adapter.name, base.name)
    if not any(turned.values()):
        return adapter
    factors_there = {name: one.turned() if turned[name] else one for name, one in adapter.factors.items()}
    return replace(adapter, factors=factors_there)


def check_tied(adapter: Adapter, base: CheckpointLayout) -> None:
    """Refuse to merge what changes an embedding into a base whose embeddings are tied.

    As peft runs the model, input and output embedding are then two, and a tied model holds one. Only a tensor
    that is neither a target nor in `modules_to_save` is loaded into the tied one itself: that of a vocabulary
    that was resized.

    Raises:
        CheckpointMismatch: says what to do instead.
    """
    saved = adapter.config.modules_to_save
    for name in (*adapter.factors, *adapter.whole):
        module = name.removesuffix(".weight")
        if name in adapter.whole and not any(f".{module}".endswith(f".{one}") for one in saved):
            continue
        if name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_EMBEDDINGS)):
            raise CheckpointMismatch(
                f"{adapter.name} changes tensor {shorten(repr(name))}, and the embeddings of its base "
                f"{base.name} are tied, of which the adapter makes two: {_TIED}",
                tensor=name,
            )


def _type_of(part: object) -> object:
    return part.get("model_type") if isinstance(part, dict) else None


def _across(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _are_alike(name: str, other: str, factors: Factors) -> bool:
    """Whether two tensors lie the same way: parameters of one module, or layers of one name."""
    mine, others = name.split("."), other.split(".")
    if factors.layout.startswith("experts"):
        return mine[:-1] == others[:-1]
    return mine[-2:] == others[-2:]


def _is_turned(factors: Factors, info: TensorInfo, adapter: str, base: str) -> bool:
    if info.shape == factors.shape:
        return False
    if factors.layout == "column" or info.shape != _across(factors.shape):
        raise _other_shape(info, factors.shape, adapter, base)
    return True


def _tensor_of(base: CheckpointLayout, name: str, adapter: str) -> TensorInfo:
    if (info := base.tensors.get(name)) is not None:
        return info
    how = "give the base that they were trained on by trajectory.base"
    if ".experts." in name:
        how = (
            "if its experts lie one by one there, give a copy in which they lie together by trajectory.base: "
            "AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder, save_original_format=False)"
        )
    elif name.endswith(".bias"):
        how = (
            "peft cannot merge the bias of a LoRA into a layer without one either: predict the adapter itself"
        )
    elif name.startswith("lm_head."):
        how = (
            "if its embeddings are tied, the head is the embedding's own weight there, of which the adapter "
            f"makes two: {_TIED}"
        )
    raise CheckpointMismatch(
        f"{adapter} changes tensor {shorten(repr(name))}, which its base {base.name} does not have; {how}",
        tensor=name,
    )


def _other_shape(info: TensorInfo, shape: tuple[int, ...], adapter: str, base: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{adapter} changes tensor {shorten(repr(info.name))} of shape {list(shape)}, and its base {base} "
        f"has one of {list(info.shape)}; give the base that it was trained on by trajectory.base (with its "
        "vocabulary resized, if training began so)",
        tensor=info.name,
    )
