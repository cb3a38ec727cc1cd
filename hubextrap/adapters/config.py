"""adapter_config.json as peft writes it: which adapter it is, and how each module's product is scaled."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.foreign_data import parse_json, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubextrap.tensors.interfaces import Source

CONFIG_FILE = "adapter_config.json"
MAX_RANK = 2**16
LONGEST_NAME = 256
"""Characters that the name of a module or a tensor may have."""
_LONGEST_PATTERN, _MOST_STEPS = 300, 100_000
"""Patterns are others' regular expressions: without a bound, one could take for ever on a long name."""
_KEEPS_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Names that `init_lora_weights` may be: with any other, peft changes the base's own weights."""
_STARTS_ELSEWHERE = (False, None, "orthogonal")
"""With these, B·A is not 0 before the first update (orthogonal: it would be, but for rounding)."""
_NOT_LINEAR = {
    "use_dora": "DoRA scales each row by a magnitude that it learns, which is not linear in the factors",
    "alora_invocation_tokens": "an activated LoRA takes part after its invocation tokens alone",
    "use_qalora": "QALoRA pools the inputs of its factors by groups",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "arrow_config": "arrow routes each token to adapters of its own",
    "kasa_config": "KaSA cuts the base's smallest singular values, and scales the factors' between them",
    "monteclora_config": "MonteCLoRA draws its factors",
    "layer_replication": "layer_replication makes layers that the base does not have",
    "megatron_config": "Megatron's layers are cut over several processes",
    "trainable_token_indices": "single rows of the embeddings are trained beside the factors",
}
"""Fields that make of a LoRA something that Σ c·s·B·A does not predict, and why."""
_NEVER_MERGED = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
    | {"CARTRIDGE", "POLY", "XLORA", "alora_invocation_tokens", "use_qalora", "arrow_config"}
)
"""Types and fields of which peft's `merge_and_unload` makes no plain weights."""
MERGE_EACH = (
    "merge each checkpoint into the base that it was trained on, PeftModel.from_pretrained(base, adapter)"
    ".merge_and_unload().save_pretrained(folder), and predict from those folders"
)
"""What can be done about an adapter that is not linear in its products."""
_NO_WAY = "peft cannot merge such an adapter into its base either, so no run of them can be predicted"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA's configuration, checked."""

    rank: int
    alpha: float
    rank_stabilised: bool
    """Whether products are scaled by alpha/√rank instead of alpha/rank (arXiv 2312.03732)."""
    rank_pattern: Mapping[str, int]
    """Module (a name's end, or a regular expression of it) to its own rank."""
    alpha_pattern: Mapping[str, float]
    """The same for alpha."""
    transposed: bool
    """Whether the base keeps its matrices as (in, out), like GPT-2."""
    base: str | None
    """The base model: a repo, or a folder."""
    base_revision: str | None
    starts_at_base: bool
    """Whether B was 0 at step 0, so that the base is the run's step 0."""
    target_parameters: tuple[str, ...]
    """Parameters, not modules, that have factors, as of fused experts."""
    modules_to_save: tuple[str, ...]
    """Names or ends of names of modules that are trained whole."""
    content: Mapping[str, Any]
    """All that the file says."""

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_key_of(module, tuple(self.rank_pattern)), self.rank)

    def scaling_of(self, module: str) -> float:
        """s of a module's product s·B·A."""
        alpha = self.alpha_pattern.get(_key_of(module, tuple(self.alpha_pattern)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_adapter_config(source: Source) -> AdapterConfig:
    """The configuration beside an adapter.

    Raises:
        UnsupportedCheckpoint: it is of no LoRA, or of one that is not linear in its products; says which.
        CorruptFile: it is not there, or not what peft writes.
        SourceError: it could not be read.
    """
    where = f"{source.name}/{CONFIG_FILE}"
    if CONFIG_FILE not in source.files():
        raise CorruptFile(
            f"{source.name}: has an adapter's weights but no {CONFIG_FILE}, which says its rank and scaling; "
            "put the one that was saved with them beside them",
            file=where,
        )
    content = parse_json(source.read_file(CONFIG_FILE), where)
    if not isinstance(content, dict):
        raise _wrong(where, "is not a JSON object")
    _check_kind(content, where)
    start = content.get("init_lora_weights", True)
    _check_start(start, where)
    return AdapterConfig(
        rank=_rank(content.get("r", 8), where, "r"),
        alpha=_alpha(content.get("lora_alpha", 8), where, "lora_alpha"),
        rank_stabilised=_flag(content, "use_rslora", where),
        rank_pattern={
            key: _rank(value, where, f"rank_pattern[{shorten(repr(key))}]")
            for key, value in _patterns(content, "rank_pattern", where).items()
        },
        alpha_pattern={
            key: _alpha(value, where, f"alpha_pattern[{shorten(repr(key))}]")
            for key, value in _patterns(content, "alpha_pattern", where).items()
        },
        transposed=_flag(content, "fan_in_fan_out", where),
        base=_text(content, "base_model_name_or_path", where),
        base_revision=_text(content, "revision", where),
        starts_at_base=start not in _STARTS_ELSEWHERE,
        target_parameters=_texts(content, "target_parameters", where),
        modules_to_save=_texts(content, "modules_to_save", where),
        content=content,
    )


def _check_kind(content: Mapping[str, Any], where: str) -> None:
    """Refuse what is no LoRA, or one whose change of the base is no s·B·A."""
    kind = content.get("peft_type")
    if kind != "LORA":
        said = "names no peft_type" if kind is None else f"is of peft_type {shorten(repr(kind))}"
        how = _NO_WAY if isinstance(kind, str) and kind in _NEVER_MERGED else MERGE_EACH
        raise UnsupportedCheckpoint(f"{where}: {said}; of adapters, only LoRA is combined: {how}", file=where)
    for field, why in _NOT_LINEAR.items():
        if content.get(field):
            how = _NO_WAY if field in _NEVER_MERGED else MERGE_EACH
            raise UnsupportedCheckpoint(f"{where}: {field}: {why}: {how}", file=where)


def _check_start(start: object, where: str) -> None:
    """Refuse what peft begins with by changing the base: then no adapter is relative to the base itself."""
    name = start.lower() if isinstance(start, str) else None
    if start is None or isinstance(start, bool) or name in _KEEPS_THE_BASE:
        return
    how = MERGE_EACH
    if name is not None and name.startswith(("pissa", "olora", "corda", "lora_ga")):
        how = (
            "save each as a plain LoRA, model.save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=first), where `first` is the adapter as it was saved "
            "before the first update, with init_lora_weights set to true in its configuration; or "
            f"{MERGE_EACH}"
        )
    raise UnsupportedCheckpoint(
        f"{where}: init_lora_weights {shorten(repr(start))} changes the base's own weights before training, "
        f"so the adapter is not of the base that it names; {how}",
        file=where,
    )


@lru_cache(maxsize=2**14)
def _key_of(module: str, keys: tuple[str, ...]) -> str:
    """Which of the patterns is a module's, as `peft.utils.other.get_pattern_key` finds it."""
    return next((key for key in keys if _compiled(key).match(module)), module)


@lru_cache(maxsize=2**12)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def _patterns(content: Mapping[str, Any], field: str, where: str) -> Mapping[str, Any]:
    found = content.get(field) or {}
    if not isinstance(found, dict):
        raise _wrong(where, f"{field} does not map modules to numbers")
    steps = 0
    for key in found:
        steps += _most_steps(key)
        if steps > _MOST_STEPS:
            raise UnsupportedCheckpoint(
                f"{where}: {field}: {shorten(repr(key))} is too involved a pattern to be tried on names; "
                "write the names of the modules instead, in a copy of the adapter",
                file=where,
            )
        try:
            _compiled(key)
        except (re.error, OverflowError, RecursionError) as error:
            raise _wrong(
                where, f"{field}: {shorten(repr(key))} is no regular expression ({error})"
            ) from error
    return found


def _most_steps(key: str) -> int:
    """An upper bound of the ways in which a pattern can be tried from one place of a name.

    Each repeat ends at any character; of alternatives each combination may be tried.
    """
    if len(key) > _LONGEST_PATTERN or re.search(r"\)[*+{?]|\\[1-9]|\(\?", key):
        return _MOST_STEPS + 1
    repeats = sum(map(key.count, "*+?{"))
    alternatives = math.prod(1 + part.count("|") for part in re.split(r"[()]", key))
    steps: int = alternatives * LONGEST_NAME ** min(repeats, 3)
    return min(steps, _MOST_STEPS + 1)


def _rank(value: object, where: str, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_RANK:
        said = "an adapter of rank 0 changes nothing" if value == 0 else f"has to be from 1 to {MAX_RANK:,}"
        raise _wrong(where, f"{field} is {shorten(repr(value))}: {said}")
    return value


def _alpha(value: object, where: str, field: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e30:
        raise _wrong(where, f"{field} is {shorten(repr(value))}, not a number")
    return float(value)


def _flag(content: Mapping[str, Any], field: str, where: str) -> bool:
    value = content.get(field)
    if value is not None and not isinstance(value, bool):
        raise _wrong(where, f"{field} is {shorten(repr(value))}, not true or false")
    return bool(value)


def _text(content: Mapping[str, Any], field: str, where: str) -> str | None:
    value = content.get(field)
    if value is not None and not isinstance(value, str):
        raise _wrong(where, f"{field} is {shorten(repr(value))}, not a text")
    return value or None


def _texts(content: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = content.get(field) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _wrong(where, f"{field} is {shorten(repr(value))}, not a list of names")
    return tuple(value)


def _wrong(where: str, what: str) -> CorruptFile:
    return CorruptFile(
        f"{where}: {what}; save the adapter again with peft, or put its own file there", file=where
    )
