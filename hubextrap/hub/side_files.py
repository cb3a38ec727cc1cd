"""What a model needs beside its weights: configuration, tokenizer, chat template, licence.

They come from the last checkpoint. Weights and training state never do, and model code (``*.py``) only when
a configuration refers to it (``auto_map``); it is copied, never run.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source

_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "chat_template.*",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
_WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "consolidated*.pth",
    "adapter_config.json",
    "adapter_model.*",
)
_NEVER = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.safetensors", "*.h5", "*.msgpack", "*.gguf")
_DTYPE_FIELD = re.compile(
    r'("(?:torch_)?dtype"\s*:\s*")((?:torch\.)?)(?:float64|float32|float16|bfloat16|float8_\w+)(")'
)


def is_side_file(file: str) -> bool:
    """Whether ``file``, at the root of a checkpoint, belongs to the model beside its weights."""
    return _matches(file, _SIDE_FILES) and not _matches(file, _NEVER)


def is_weight_file(file: str) -> bool:
    """Whether ``file``, at the root of a repo, is weights (or an index of them) that a loader picks up."""
    return _matches(file, _WEIGHT_FILES)


def side_files(last: Source, out_dtype: str | None) -> dict[str, bytes]:
    """The last checkpoint's side files by name, the configuration's dtype set to ``out_dtype`` (bfloat16).

    Raises:
        CorruptFile: ``config.json`` is not there or is not a JSON object.
        SourceError: a file could not be read.
    """
    present = sorted(last.files())
    if "config.json" not in present:
        raise CorruptFile(
            f"{last.name}: no config.json; a model cannot be loaded without one, add it to the checkpoint"
        )
    files = {file: last.read_file(file) for file in present if is_side_file(file)}
    _check_config(files["config.json"], last.name)
    if out_dtype is not None:
        files["config.json"] = with_dtype(files["config.json"], out_dtype)
    if any(b'"auto_map"' in content for file, content in files.items() if file.endswith("config.json")):
        files |= {file: last.read_file(file) for file in present if file.endswith(".py")}
    return files


def with_dtype(config: bytes, dtype: str) -> bytes:
    """``config.json`` with every dtype in it (nested configurations too) set; all other bytes stay."""
    return _DTYPE_FIELD.sub(rf"\g<1>\g<2>{dtype}\g<3>", config.decode()).encode()


def _check_config(config: bytes, name: str) -> None:
    try:
        content = json.loads(config.decode())
    except ValueError as error:
        raise CorruptFile(
            f"{name}: config.json is not valid JSON ({error}); repair it in the checkpoint"
        ) from error
    if not isinstance(content, dict):
        raise CorruptFile(f"{name}: config.json holds no JSON object; repair it in the checkpoint")


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in file and any(fnmatchcase(file, pattern) for pattern in patterns)
