"""The snippet of a card that loads the model, as the class that it is.

Known from the configuration alone: transformers takes seconds to import, and code from the Hub is not run.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from hubextrap.foreign_data import parse_json
from hubextrap.hub.side_files import CODE_REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CAUSAL_LM = "AutoModelForCausalLM"
_LANGUAGE_MODEL = re.compile(r"\w+ForCausalLM|\w+(?<!With)LMHeadModel")
_UNKNOWN_TO_AUTO = "Mistral4ForCausalLM"
"""A language model that AutoModelForCausalLM does not have."""
_OF_TOKENS = re.compile(
    r"(?!\w*Audio|Hubert|SEW|UniSpeech|Wav)\w+(ForSequenceClassification|ForTokenClassification)"
)
"""Reward models, of outcomes and of steps; what classifies sounds is called alike, and no such Auto class
has it."""
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_PLACE = re.compile(r'from_pretrained\((model, )?"(?:[^"\\]|\\.)*"(?:, revision="(?:[^"\\]|\\.)*")?')
_BASE = "path/to/its/base"
_TRUST = ", trust_remote_code=True"


def loading_snippet(side_files: Mapping[str, bytes], reference: str, base: str | None = None) -> str:
    """Python that loads a model and what turns its inputs into tensors.

    Args:
        side_files: the model's, by name; without a ``config.json`` it counts as a language model.
        reference: the folder or repo.
        base: of an adapter, the repo of its base; None where that is a folder.
    """
    if "adapter_config.json" in side_files:
        return _adapter_snippet(side_files, reference, base)
    config = parse_json(side_files.get("config.json", b"{}"), "config.json")
    model = model_class(config, images=_for_images(side_files))
    kind, name = ("AutoTokenizer", "tokenizer")
    if any(file in side_files for file in _PROCESSORS):
        kind, name = ("AutoProcessor", "processor")
    configurations = [data for file, data in side_files.items() if file.endswith("config.json")]
    runs_code = any(CODE_REFERENCE in data for data in configurations)
    lines = [
        f"from transformers import {', '.join(sorted((model, kind)))}",
        "",
        *["# trust_remote_code runs the Python files beside the weights: read them first"] * runs_code,
        f"model = {model}.from_pretrained({json.dumps(reference)}{_TRUST * runs_code})",
        f"{name} = {kind}.from_pretrained({json.dumps(reference)}{_TRUST * runs_code})",
    ]
    return "\n".join(["```python", *lines, "```"])


def _adapter_snippet(side_files: Mapping[str, bytes], reference: str, base: str | None) -> str:
    """An adapter's base is found by its configuration, where that names a repo that others can read."""
    config = parse_json(side_files["adapter_config.json"], "adapter_config.json")
    here = json.dumps(reference) if "tokenizer_config.json" in side_files else None
    if base is not None and config.get("base_model_name_or_path") == base:
        tokenizer = here or 'model.peft_config["default"].base_model_name_or_path'
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f"model = AutoPeftModelForCausalLM.from_pretrained({json.dumps(reference)})",
        ]
    else:
        tokenizer = here or "base"
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"base = {json.dumps(base or _BASE)}",
            'model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")',
            f"model = PeftModel.from_pretrained(model, {json.dumps(reference)})",
        ]
    return "\n".join(["```python", *lines, f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})", "```"])


def placed_at(snippet: str, reference: str, revision: str) -> str:
    """``snippet`` with another place to load from; ``main`` is not named."""
    at = "" if revision == "main" else f", revision={json.dumps(revision)}"
    return _PLACE.sub(lambda match: f"from_pretrained({match[1] or ''}{json.dumps(reference)}{at}", snippet)


def _for_images(side_files: Mapping[str, bytes]) -> bool:
    """Whether what prepares a model's inputs prepares images or videos, and nothing else beside text."""
    if "video_preprocessor_config.json" in side_files:
        return True
    return b"image_processor_type" in side_files.get("preprocessor_config.json", b"")


def model_class(config: Mapping[str, Any], *, images: bool = False) -> str:
    """The class of transformers that loads a model of this configuration with all of its weights.

    An Auto class where one is sure to lead to the architecture that the configuration names, else that
    architecture itself; for code of the model's own, the Auto class that the configuration gives it.

    Args:
        images: the files beside it say that it takes images, whatever the configuration says.
    """
    named, own = config.get("architectures"), config.get("auto_map")
    architecture = next(iter(_names(named)), None) if isinstance(named, list) else None
    if isinstance(own, dict) and (classes := [name for name in _names(own) if name.startswith("AutoModel")]):
        return next((name for name in classes if str(own[name]).endswith(f".{architecture}")), classes[0])
    sees = any("vision" in key or "image" in key for key in config)
    if architecture is None:
        return "AutoModelForImageTextToText" if sees or images else CAUSAL_LM
    if _LANGUAGE_MODEL.fullmatch(architecture) and architecture != _UNKNOWN_TO_AUTO:
        return CAUSAL_LM
    if architecture.endswith("ForConditionalGeneration") and (
        sees or (images and "Omni" not in architecture)
    ):
        return "AutoModelForImageTextToText"
    if found := _OF_TOKENS.fullmatch(architecture):
        return f"AutoModel{found[1]}"
    return architecture


def _names(values: Iterable[Any]) -> list[str]:
    """Those of a configuration's values that can stand in the snippet, which people run."""
    return [value for value in values if isinstance(value, str) and value.isidentifier()]
