"""Which checkpoints hold plain weights, so that a sum over them is a sum of models.

A file may be sound and still hold something else: the factors of an adapter, the empty tensors that a sharded
trainer leaves behind, or quantised numbers and their scales. A line through the parts is no line through the
weights that they stand for, so such checkpoints are refused whole, whatever the recipe's rules; where the
numbers behind quantised ones are certain, these are read instead. What is there is told by names, dtypes and
shapes alone, one pass over them a checkpoint.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.foreign_text import own_lines
from hubextrap.tensors.assembled import AssembledSource
from hubextrap.tensors.configuration import config_object
from hubextrap.tensors.dequantising import Dequantising
from hubextrap.tensors.fused import cut_as_last
from hubextrap.tensors.layout import share_tensors
from hubextrap.tensors.local import LocalSource
from hubextrap.tensors.names import named_as_last
from hubextrap.tensors.quantised import quantised_pair
from hubextrap.tensors.tied import is_tied
from hubextrap.tensors.weights import READERS, read_layouts
from hubextrap.trajectory.weights import ADAPTER_FILE, FSDP_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.progress import Progress
    from hubextrap.recipe.tensor_names import Naming
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import CheckpointLayout

MERGE_ADAPTER = (
    "merge the adapter of each checkpoint into its base first: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
_TAKE_ADAPTER = (
    "such a file does not say how they are scaled: name the adapters that have an adapter_config.json "
    "(steps.pattern in a recipe, or --pattern; verl leaves them in lora_adapter, beside the model),"
)
_BY_VERL = (
    "name the adapters that verl leaves in lora_adapter, beside the ranks' files (steps.pattern in a recipe, "
    "or --pattern); where there are none, write them: python -m verl.model_merger merge --backend fsdp "
    "--local_dir FOLDER --target_dir FOLDER/huggingface for each checkpoint, then name "
    "FOLDER/huggingface/lora_adapter"
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


@dataclass(frozen=True)
class Combinable:
    """Checkpoints as they are combined, in step order."""

    sources: tuple[Source, ...]
    """Whose files ``layouts`` describe."""
    layouts: list[CheckpointLayout]
    notes: tuple[str, ...] = ()
    """What is called or cut otherwise than it is stored."""
    caveats: tuple[str, ...] = ()
    """What whoever uses the output should know: what is read as other numbers than are stored, say."""

    @cached_property
    def tied(self) -> bool:
        """Whether the last one's embeddings are tied: see `is_tied`."""
        return is_tied(self.sources[-1], self.layouts[-1])

    def of(self, numbers: Sequence[int]) -> Combinable:
        """Some of them."""
        sources, layouts = (self.sources[k] for k in numbers), [self.layouts[k] for k in numbers]
        return Combinable(tuple(sources), layouts, self.notes, self.caveats)


def read_combinable(
    sources: Sequence[Source], progress: Progress | None = None, naming: Naming | None = None
) -> Combinable:
    """Checkpoints that are to be combined, and their layouts; see ``read_layouts``.

    Of configurations with the same hash, one is read. This is the one place where sources are wrapped because
    of what others hold.

    Raises:
        UnsupportedCheckpoint: one holds no plain weights; the message says which, why, and what to do.
        RecipeError: what a recipe says of names has no effect.
        HubExtrapError: as ``read_layouts``; a config.json that is no JSON object.
    """
    stored = read_layouts(sources, progress)
    reading = Dequantising()
    read = list(map(reading.read, sources, stored, configurations(sources)))
    sources = [one.source for one in read]
    named = named_as_last([one.layout for one in read], sources, naming)
    layouts = named.layouts
    share_tensors(layouts)
    by_remedy: dict[str, list[str]] = {}
    beside = next((place for one in sources if (place := _adapter_beside(one)) is not None), None)
    plain: set[tuple[int, str | None]] = set()  # the checkpoints of a run share the table of their tensors
    for layout, one in zip(layouts, read, strict=True):
        key = (id(layout.tensors), method := one.method)
        if key in plain:
            continue
        if found := _finding(layout, method, one.source):
            what, remedy = found
            by_remedy.setdefault(remedy, []).append(what)
        else:
            plain.add(key)
    if not by_remedy:
        recut = cut_as_last(layouts, sources)
        return Combinable(recut.sources, recut.layouts, (*named.notes, *recut.notes), reading.notes)
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


def _is_of_ranks(file: str) -> bool:
    return FSDP_FILE.fullmatch(file) is not None


# the parts of 45,000 names are a few hundred
_adapter_part = lru_cache(maxsize=4096)(_ADAPTER_PART.fullmatch)


def _finding(layout: CheckpointLayout, method: str | None, source: Source) -> tuple[str, str] | None:
    """What keeps a checkpoint from being combined, and what to do about it; None when nothing does."""
    tensors = layout.tensors

    def place(name: str) -> str:
        in_pieces = isinstance(source, AssembledSource)  # whose files lie nowhere
        where = layout.name if in_pieces else f"{layout.name}/{tensors[name].file}"
        return f"{where}: tensor {shorten(repr(name))}"

    adapters = [name for name in tensors if is_adapter_tensor(name)]
    if adapters:
        what = (
            f"is part of an adapter or of a model wrapped in one, like {len(adapters):,} of {len(tensors):,} "
            "tensors; the factors of an adapter cannot be combined separately"
        )
        of_verl = isinstance(source, AssembledSource) and any(map(_is_of_ranks, source.stored.files()))
        return f"{place(adapters[0])} {what}", _BY_VERL if of_verl else MERGE_ADAPTER
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


def configurations(sources: Sequence[Source]) -> list[Mapping[str, Any]]:
    """What each config.json says; nothing where there is none. Those of the same content are one object."""
    configured = [source.files().get("config.json") for source in sources]
    keys = [info.digest or str(number) if info else "" for number, info in enumerate(configured)]
    readers = {key: source for key, source in zip(keys, sources, strict=True) if key}
    with ThreadPoolExecutor(READERS, thread_name_prefix="hubextrap-configs") as pool:
        contents = dict(zip(readers, pool.map(_config_content, readers.values()), strict=True))
    parsed: dict[bytes, Mapping[str, Any]] = {}
    for key, content in contents.items():
        if content not in parsed:
            parsed[content] = config_object(content, readers[key].name)
    none: Mapping[str, Any] = {}
    return [parsed[contents[key]] if key else none for key in keys]


def _config_content(source: Source) -> bytes:
    return source.read_file("config.json")
