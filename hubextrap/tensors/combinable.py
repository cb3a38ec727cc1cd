"""Which checkpoints hold plain weights, so that a sum over them is a sum of models.

A file may be sound and still hold something else: the factors of an adapter, the empty tensors that a sharded
trainer leaves behind, or quantised numbers and their scales. A line through the parts is no line through the
weights that they stand for, so such checkpoints are refused whole, whatever the recipe's rules. What is there
is told by names, dtypes and shapes alone, one pass over them a checkpoint.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.foreign_text import own_lines
from hubextrap.tensors.configuration import quantisation_method, read_config
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.weights import READERS, read_layouts
from hubextrap.trajectory.weights import ADAPTER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

MERGE_ADAPTER = (
    "merge the adapter of each checkpoint into its base first: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
_TAKE_ADAPTER = (
    "such a file does not say how they are scaled: name the adapters that have an adapter_config.json "
    "(steps.pattern in a recipe, or --pattern; verl leaves them in lora_adapter, beside the model),"
)
_GATHER = (
    "DeepSpeed ZeRO-3 leaves such files: save again with stage3_gather_16bit_weights_on_model_save: true, or "
    "run `python zero_to_fp32.py . model --safe_serialization` in the trainer's checkpoint and take its "
    "folder model, with config.json beside the weights"
)
_ADAPTER_PART = re.compile(
    # what a wrapper calls the module that it wraps, and what peft's methods call their own parameters
    r"modules_to_save|original_module|to_wrap|prompt_embeddings"
    r"|(?:lora|adamss|beft|boft|c3a|cartridge|delora|fourierft|frod|glora|gralora|hada|hira|ia3|loha"
    r"|lokr|osf|peanut|psoft|randlora|shira|supertuning|tinylora|unilora|vblora|waveft|xlora"
    r"|ln_tuning|p_tuning|prefix_tuning|(?:multitask_)?prompt_tuning|trainable_tokens)_\w+"
    r"|adaption_(?:prompt|gate)|bone_block|p?vera_(?:[AB]|lambda_\w+)|magnitude_vector"
    # other trainers' names for the factors
    r"|[Ll]o[Rr][Aa]_?(?:[ABab]|down|up)|to_(?:q|k|v|out)_lora"
    r"|poly_(?:lora_\w+|router)|road_(?:theta|alpha)|miss_block|hra_u|oft_(?:blocks|\w*[Rrs])|deft_[PR]"
    r"|lily_(?:[AB]|router)|shadow_model"
)
_WRAPPED = re.compile(
    # not base_model.model.layers: there a head may be wrapped around a plain model
    r"(?:^|\.)(?:base_model\.model\.(?!layers\.|embed_tokens\.|norm\.)|prompt_encoder\.default\.)"
    r"|\.base_layer\.[^.]+$|\.adapter\.linear_(?:in|out)\.|(?:^|\.)adapter_layer\.parallel\."
)

_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTISED_PARTS = frozenset(
    {"absmax", "nested_absmax", "quant_map", "nested_quant_map", "quant_state", "scb"}
    | {"qweight", "qzeros", "qidxs", "g_idx", "weight_packed", "w_q", "_data"}
)
"""Parts of names that only quantised weights have, in whatever dtype they are stored: bitsandbytes also keeps
packed numbers in bfloat16."""
_SCALE = re.compile(r"scale|absmax|amax|zero|^scb$|codebook|centroid|lookup_table|_lut", re.IGNORECASE)
_BUFFER = re.compile(r"(?:bias(?:es)?|mask|(?:^|_)ids|_index|^_extra_state\w*)$")
"""Integers that are no weights: `attn.bias`, the causal mask of GPT-2 and its heirs; position_ids; what
TransformerEngine keeps beside its layers."""


def read_combinable(sources: Sequence[Source], progress: Progress | None = None) -> list[CheckpointLayout]:
    """The layouts of checkpoints that are to be combined; see ``read_layouts``.

    Of configurations with the same hash, one is read.

    Raises:
        UnsupportedCheckpoint: one holds no plain weights; the message says which, why, and what to do.
        HubExtrapError: as ``read_layouts``; a config.json that is no JSON object.
    """
    layouts = read_layouts(sources, progress)
    methods = _quantisation_methods(sources)
    by_remedy: dict[str, list[str]] = {}
    beside = next((place for one in sources if (place := _adapter_beside(one)) is not None), None)
    plain: set[tuple[int, str | None]] = set()  # the checkpoints of a run share the table of their tensors
    for layout, method in zip(layouts, methods, strict=True):
        key = (id(layout.tensors), method)
        if key in plain:
            continue
        if found := _finding(layout, method):
            what, remedy = found
            by_remedy.setdefault(remedy, []).append(what)
        else:
            plain.add(key)
    if not by_remedy:
        return layouts
    messages = []
    for remedy, alike in by_remedy.items():
        if remedy == MERGE_ADAPTER:
            there = "" if beside is None else f" as {shorten(beside)} is one;"
            remedy = f"{_TAKE_ADAPTER}{there} or {MERGE_ADAPTER}"
        more = f" (as in {len(alike) - 1} more of the checkpoints)" if len(alike) > 1 else ""
        messages.append(f"{alike[0]}{more}; {remedy}")
    raise UnsupportedCheckpoint(own_lines(*messages))


def is_adapter_tensor(name: str) -> bool:
    """Whether a tensor is part of an adapter, or of a model that is still wrapped in one, by its name."""
    return any(map(_adapter_part, name.split("."))) or _WRAPPED.search(name) is not None


def quantised_pair(tensors: Mapping[str, TensorInfo]) -> tuple[str, str | None] | None:
    """A quantised tensor and what belongs to it, its scale first of all; None where all weights are plain.

    Integers and float8 alone are no sign: causal masks, position numbers and counters are integers too.
    """
    packed = _packed_places(tensors)
    for name, info in tensors.items():
        owner = next((packed[place] for place in _places_of_scale(name) if place in packed), None)
        if owner is not None and owner != name and _elements(tensors[owner]) >= _elements(info):
            return owner, name
    return _pair_without_name(tensors) or next(
        ((name, None) for name, info in tensors.items() if _is_packed_by_name(name, info)), None
    )


def _is_packed_by_name(name: str, info: TensorInfo) -> bool:
    if info.dtype in ("I8", "U8") and len(info.shape) > 1 and _last(name) == "weight":
        return True
    return not _QUANTISED_PARTS.isdisjoint(name.lower().split("."))


# the parts of 45,000 names are a few hundred
_adapter_part = lru_cache(maxsize=4096)(_ADAPTER_PART.fullmatch)
_scale = lru_cache(maxsize=4096)(_SCALE.search)


def _finding(layout: CheckpointLayout, method: str | None) -> tuple[str, str] | None:
    """What keeps a checkpoint from being combined, and what to do about it; None when nothing does."""
    tensors = layout.tensors

    def place(name: str) -> str:
        return f"{layout.name}/{tensors[name].file}: tensor {shorten(repr(name))}"

    adapters = [name for name in tensors if is_adapter_tensor(name)]
    if adapters:
        what = (
            f"is part of an adapter or of a model wrapped in one, like {len(adapters):,} of {len(tensors):,} "
            "tensors; the factors of an adapter cannot be combined separately"
        )
        return f"{place(adapters[0])} {what}", MERGE_ADAPTER
    hollow = [
        name
        for name, info in tensors.items()
        if not info.nbytes and not info.dtype.startswith(("I", "U", "BOOL"))
    ]
    if hollow:
        shape, count = list(tensors[hollow[0]].shape), f"{len(hollow):,} of {len(tensors):,} tensors"
        return f"{place(hollow[0])} has shape {shape}, so it holds no weights, like {count}", _GATHER
    pair = quantised_pair(tensors)
    if pair is not None:
        what = "belongs to quantised weights"
        if pair[1] is not None:
            what = f"is {tensors[pair[0]].dtype} with its scale in {shorten(repr(pair[1]))}"
        return f"{place(pair[0])} {what}: quantised weights cannot be combined", _dequantise(method)
    if method is not None:
        called = f" ({method})" if method else ""
        what = f"has a quantization_config, so the weights are quantised{called}, and quantised weights"
        plain = "if the files hold plain weights, remove quantization_config from that config.json"
        return (
            f"{layout.name}/config.json: {what} cannot be combined",
            f"{_dequantise(method)}; {plain}",
        )
    return None


def _adapter_beside(source: Source) -> str | None:
    """The adapter that lies beside a local model, as verl leaves it."""
    if not isinstance(source, LocalSource):
        return None
    place = source.folder.parent / "lora_adapter"
    return str(place) if (place / ADAPTER_FILE).is_file() else None


def _dequantise(method: str | None) -> str:
    """What to do about quantised checkpoints, by their quant_method."""
    key = (method or "").lower().replace("-", "_")
    configs = {"fp8": "FineGrainedFP8", "mxfp4": "Mxfp4", "compressed_tensors": "CompressedTensors"}
    saved = ".save_pretrained(folder, save_original_format=False)"
    if key in configs:
        option = f"quantization_config={configs[key]}Config(dequantize=True)"
        how = f'AutoModelForCausalLM.from_pretrained(checkpoint, dtype="bfloat16", {option}){saved}'
    elif key.startswith("bitsandbytes") or key == "bnb":
        how = f"AutoModelForCausalLM.from_pretrained(checkpoint).dequantize(torch.bfloat16){saved}"
    else:
        how = "with the tool that quantised them"
    return (
        "use the checkpoints from before quantisation, or dequantise all of them into new folders first "
        f"({how}) and use those"
    )


def _quantisation_methods(sources: Sequence[Source]) -> list[str | None]:
    """What each config.json says of quantisation."""
    configured = [source.files().get("config.json") for source in sources]
    keys = [info.digest or str(number) if info else "" for number, info in enumerate(configured)]
    readers = {key: source for key, source in zip(keys, sources, strict=True) if key}
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-configs") as pool:
        configs = pool.map(read_config, readers.values())
        found = {key: quantisation_method(config) for key, config in zip(readers, configs, strict=True)}
    return [found.get(key) for key in keys]


def _packed_places(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Where a scale of an integer or float8 tensor would lie, to the largest such tensor there."""
    places: dict[str, str] = {}
    plain = _plain_modules(tensors)
    for name, info in tensors.items():
        if not _may_be_packed(info) or _scale(_last(name)):
            continue
        found = [name, *filter(None, [_stem(name)])]
        # others number things; they only count beside a scale of their name
        if _may_be_matrix(info) and (_module(name) not in plain or info.dtype.startswith("F8")):
            found.append(_module(name))
        for place in found:
            if place not in places or _elements(tensors[places[place]]) < _elements(info):
                places[place] = name
    return places


def _places_of_scale(name: str) -> Iterator[str]:
    """Names and modules that a tensor called like a scale may belong to; none for any other name."""
    module, last = _module(name), _last(name)
    if not _scale(last):
        return
    start = len(name) - len(last)
    for cut in reversed([match.start() for match in re.finditer(r"[_:]", last)]):
        yield name[: start + cut]
    yield module
    if "." in module:
        yield _module(module)


def _pair_without_name(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """A packed tensor and a float beside it in a module without a plain weight, whatever they are called."""
    packed: dict[str, str] = {}
    plain = _plain_modules(tensors)
    for name, info in tensors.items():
        if _may_be_packed(info) and _may_be_matrix(info):
            for place in (_module(name), name):
                if place and (place not in packed or _elements(tensors[packed[place]]) < _elements(info)):
                    packed[place] = name
    if not packed:
        return None
    for name, info in tensors.items():
        if info.dtype not in _FLOATS or _BUFFER.search(_last(name)):
            continue
        for place in filter(None, (_module(name), _stem(name))):
            owner = None if place in plain else packed.get(place)
            if owner is not None and _elements(tensors[owner]) >= 2 * _elements(info):
                return owner, name
    return None


def _plain_modules(tensors: Mapping[str, TensorInfo]) -> set[str]:
    """Modules that hold a weight of ordinary numbers."""
    return {
        _module(name) for name, info in tensors.items() if info.dtype in _FLOATS and _last(name) == "weight"
    }


def _may_be_matrix(info: TensorInfo) -> bool:
    """Whether a packed tensor may be a weight by itself, and does not just number things."""
    return info.dtype.startswith("F8") or (len(info.shape) > 1 and not info.dtype.endswith("64"))


def _may_be_packed(info: TensorInfo) -> bool:
    return info.dtype.startswith(("F8", "I", "U")) and not _BUFFER.search(_last(info.name))


def _elements(info: TensorInfo) -> int:
    return info.nbytes // DTYPES[info.dtype].itemsize


def _stem(name: str) -> str:
    """A name without the last word of its last part: ``x.w_blocks`` → ``x.w``; "" where that is one word."""
    last = _last(name)
    cut = max(last.rfind("_"), last.rfind(":"))
    return name[: len(name) - len(last) + cut] if cut > 0 else ""


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
