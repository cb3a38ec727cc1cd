"""The tensors of one adapter's file, put together to what each changes of the base.

peft's own `get_delta_weight` is the definition: of a linear layer s·B·A, transposed where the base keeps its
matrices as (in, out); of an embedding (s·B·A)ᵀ; of fused experts s·B[:, :, e]·A[e] of each expert e, where
the file holds A as (experts·rank, in) and B as (out, rank·experts).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from hubextrap.adapters.config import CONFIG_FILE, MERGE_EACH
from hubextrap.adapters.names import part_of
from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import shorten

if TYPE_CHECKING:
    from hubextrap.adapters.config import AdapterConfig
    from hubextrap.adapters.names import Part
    from hubextrap.tensors.layout import ShardInfo, TensorInfo

Layout = Literal["plain", "transposed", "experts", "experts_swapped", "column"]
_TURNED: dict[Layout, Layout] = {
    "plain": "transposed",
    "transposed": "plain",
    "experts": "experts_swapped",
    "experts_swapped": "experts",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_DEFINED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""Parameters of fused experts in the order in which transformers' classes define them: peft wraps the module
once for each in that order, and a file tells no more of them than how deep the wrapper lies."""
_SAVE_AGAIN = "save the adapter again with peft's save_pretrained"


@dataclass(frozen=True, slots=True)
class Factors:
    """What one adapter changes of one tensor of the base: ``scaling`` times a product."""

    a: TensorInfo
    b: TensorInfo
    """As peft stores them; of ``column`` both are the bias of B."""
    rank: int
    """Columns of the left factor."""
    scaling: float
    shape: tuple[int, ...]
    """Of the base's tensor: (rows, cols), (experts, rows, cols), or (rows,) of ``column``."""
    layout: Layout
    """``plain``: B·A. ``transposed``: (B·A)ᵀ, of an embedding, or where the base has (in, out). ``experts``:
    (B·A)ᵀ of each, ``experts_swapped``: B·A of each; the base alone tells which, see `fitting`. ``column``:
    the bias of B (`lora_bias`), which is added to one of the base's."""

    def turned(self) -> Factors:
        """The same where the base keeps the transposed matrices."""
        *before, rows, cols = self.shape
        return replace(self, shape=(*before, cols, rows), layout=_TURNED[self.layout])


def tensors_of(
    shard: ShardInfo, config: AdapterConfig, where: str
) -> tuple[dict[str, Factors], dict[str, TensorInfo]]:
    """What an adapter's file changes, by the base's names: by factors, and tensors that were trained whole.

    Args:
        where: names the file in messages.

    Raises:
        UnsupportedCheckpoint: parts of something else than a LoRA.
        CorruptFile: factors that are missing, or fit neither each other nor the configuration.
    """
    modules: dict[str, list[tuple[Part, TensorInfo]]] = {}
    whole: dict[str, TensorInfo] = {}
    copies: dict[str, TensorInfo] = {}
    frozen: list[tuple[str, TensorInfo]] = []
    for info in shard.tensors:
        part = part_of(info.name, where)
        _check_plain(info, part, where)
        if part.role == "base":
            frozen.append((part.module, info))
        elif part.role == "whole":
            # beside a module of modules_to_save, `bias: all` saves its bias a second time
            kept = copies if ".modules_to_save." in info.name else whole
            if part.module in kept:
                raise _wrong(where, info.name, f"and {shorten(repr(kept[part.module].name))} are the same")
            kept[part.module] = info
        elif part.role != "unused":
            modules.setdefault(part.module, []).append((part, info))
    whole = copies | whole
    factors: dict[str, Factors] = {}
    for module, parts in modules.items():
        factors |= _of_module(module, parts, config, where)
    for name in factors:
        if name in whole:
            what = "is trained whole, and has factors too, which cannot be combined"
            raise _wrong(where, whole[name].name, f"{what}: {MERGE_EACH}", "")
    for module, info in frozen:
        _check_frozen(info, factors.get(f"{module}.weight"), where)
    if not factors:
        raise CorruptFile(
            f"{where}: holds no factors (lora_A, lora_B), so it is no adapter; {_SAVE_AGAIN}", file=where
        )
    return factors, whole


def _check_plain(info: TensorInfo, part: Part, where: str) -> None:
    if part.role == "unused":
        return
    if info.dtype not in _FLOATS:
        what = f"is {info.dtype}; only {', '.join(_FLOATS)} can be combined"
        raise _wrong(where, info.name, what)
    if info.nbytes:
        return
    what = (
        f"has shape {list(info.shape)}, so it holds no weights: DeepSpeed ZeRO-3 and FSDP leave such files "
        "where parameters are not gathered before they are saved; save again with "
        "stage3_gather_16bit_weights_on_model_save: true (FSDP: FullyShardedDataParallel.summon_full_params)"
    )
    if len(info.shape) == 2 and part.role in ("A", "B"):
        what = f"has shape {list(info.shape)}: an adapter of rank 0 changes nothing"
    raise _wrong(where, info.name, what)


def _check_frozen(info: TensorInfo, factors: Factors | None, where: str) -> None:
    """The base's own weight that peft saves beside the factors of an embedding takes no part."""
    if factors is None:
        raise _wrong(where, info.name, "is the weight inside a LoRA whose factors are not there")
    if info.shape != factors.shape and info.shape != factors.turned().shape:
        shapes = f"{list(info.shape)}, and its factors are of {list(factors.shape)}"
        raise _wrong(where, info.name, f"has shape {shapes}")


def _of_module(
    module: str, parts: list[tuple[Part, TensorInfo]], config: AdapterConfig, where: str
) -> dict[str, Factors]:
    """The factors of one module, by the base's name of the tensors that they change."""
    levels: dict[int, dict[str, tuple[Part, TensorInfo]]] = {}
    for part, info in parts:
        level = levels.setdefault(part.depth, {})
        if part.role in level:
            other = level[part.role][1].name
            what = (
                f"and {shorten(repr(other))} are the same factor of one module: keep one adapter in the file"
            )
            raise _wrong(where, info.name, what)
        level[part.role] = (part, info)
    targets = _parameters_of(module, len(levels), config, where)
    found: dict[str, Factors] = {}
    for depth, level in levels.items():
        some = next(iter(level.values()))[1]
        for role, other in (("A", "B"), ("B", "A")):
            if role not in level:
                there = level.get(other, level.get("bias"))
                name = some.name if there is None else there[1].name
                raise _wrong(where, name, f"is there without its lora_{role}")
        (part, a), (_, b) = level["A"], level["B"]
        if depth >= len(targets):
            raise _wrong(where, a.name, "lies inside a wrapper that is not there")
        target = targets[depth]
        found[f"{module}.{target or 'weight'}"] = _factors(
            a, b, part.embedding, config, (module, target), where
        )
        if "bias" in level:
            bias = level["bias"][1]
            if bias.shape != (b.shape[0],):
                raise _wrong(where, bias.name, f"has shape {list(bias.shape)}, and {b.name} {list(b.shape)}")
            found[f"{module}.bias"] = Factors(bias, bias, 1, config.scaling_of(module), bias.shape, "column")
    return found


def _parameters_of(module: str, levels: int, config: AdapterConfig, where: str) -> list[str | None]:
    """The parameters of a module that have factors (`target_parameters`), outermost wrapper first.

    None stands for the weight of a module that is a target itself.
    """
    names = set()
    for target in config.target_parameters:
        place, _, name = target.rpartition(".")
        if f".{module}".endswith(f".{place}") if place else levels > 1 or module.split(".")[-1] == "experts":
            names.add(name)
    if not names and levels == 1:
        return [None]
    ordered = sorted(names, key=lambda name: _DEFINED.index(name) if name in _DEFINED else -1, reverse=True)
    if len(names) == levels and (levels == 1 or names.issubset(_DEFINED)):
        return [*ordered]
    there = ", ".join(ordered) or "none"
    raise UnsupportedCheckpoint(
        f"{where}: module {shorten(repr(module))} has factors of {levels} parameters, and of those that "
        f"{CONFIG_FILE} names (target_parameters: {shorten(there)}) it cannot be told which they are: "
        f"{MERGE_EACH}",
        file=where,
    )


def _factors(
    a: TensorInfo,
    b: TensorInfo,
    embedding: bool,
    config: AdapterConfig,
    target: tuple[str, str | None],
    where: str,
) -> Factors:
    """The factors of one tensor; ``target``: its module, and the parameter's name where that has them."""
    module, parameter = target
    for info in (a, b):
        if len(info.shape) != 2:
            what = (
                f"has {len(info.shape)} axes; factors of other layers than linear ones and embeddings, as of "
            )
            raise _wrong(where, info.name, what + f"convolutions, cannot be combined: {MERGE_EACH}", "")
    if b.shape[1] != a.shape[0]:
        what = f"has shape {list(a.shape)} and {shorten(repr(b.name))} {list(b.shape)}: their ranks differ"
        raise _wrong(where, a.name, what)
    key = module if parameter is None else f"{module}.{parameter}"  # what peft tries its patterns on
    rank, scaling = config.rank_of(key), config.scaling_of(key)
    experts, rest = divmod(a.shape[0], rank)
    out, inner = b.shape[0], a.shape[1]
    if rest or (experts > 1 and parameter is None) or not experts:
        what = (
            f"has rank {a.shape[0]}, and {CONFIG_FILE} gives its module {rank}, so its scaling is not known"
        )
        raise _wrong(where, a.name, what, "put the configuration there that was saved with it")
    if experts > 1:
        return Factors(a, b, rank, scaling, (experts, out, inner), "experts_swapped")
    if embedding or config.transposed:
        return Factors(a, b, rank, scaling, (inner, out), "transposed")
    return Factors(a, b, rank, scaling, (out, inner), "plain")


def _wrong(where: str, tensor: str, what: str, remedy: str = _SAVE_AGAIN) -> CorruptFile:
    end = f"; {remedy}" if remedy else ""
    return CorruptFile(f"{where}: tensor {shorten(repr(tensor))} {what}{end}", file=where, tensor=tensor)
