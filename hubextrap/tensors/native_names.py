"""Tensors that go by a trainer's own names, which nothing but that trainer loads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.foreign_data import shorten
from hubextrap.tensors.assembled import AssembledSource
from hubextrap.trajectory.weights import DCP_METADATA

if TYPE_CHECKING:
    from hubextrap.tensors.interfaces import Source

_TORCHTITAN = re.compile(
    # torchtitan/models: llama3, llama4, qwen3, deepseek_v3
    r"(?:^|\.)tok_embeddings\.weight"
    r"|(?:^|\.)layers\.\d+\.(?:attention\.w(?:[qkvo]|q_[ab]|kv_[ab])|feed_forward\.w[123])\.weight"
)


def refuse_native_names(source: Source) -> None:
    """Refuse a checkpoint in pieces to whose names no configuration of transformers belongs.

    Those of earlier steps and of the last one can be compared all the same: scans take such runs.

    Raises:
        UnsupportedCheckpoint: it is torchtitan's; says what converts it.
        HubExtrapError: as `AssembledSource.layout`.
    """
    if not isinstance(source, AssembledSource) or DCP_METADATA not in source.stored.files():
        return
    found = next(filter(_TORCHTITAN.search, source.layout.tensors), None)
    if found is None:
        return
    raise UnsupportedCheckpoint(
        f"{source.name}: tensor {shorten(repr(found))} goes by torchtitan's own name, and transformers loads "
        "no such model; convert each checkpoint, in torchtitan's repository (python "
        "scripts/checkpoint_conversion/convert_to_hf.py FOLDER FOLDER-hf --hf_assets_path BASE --model_name "
        "llama3 --model_flavor 8B), copy config.json and the tokenizer of BASE into each FOLDER-hf, and name "
        "these",
        tensor=found,
    )
