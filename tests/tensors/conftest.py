"""Small checkpoints as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hubextrap.tensors import build_header

Shard = Callable[..., bytes]
Checkpoint = Callable[[Sequence[Sequence[str]]], dict[str, bytes]]


def make_shard(names: Sequence[str], elements: int = 16, seed: int = 0) -> bytes:
    header = build_header([(name, "U8", (elements,)) for name in names])
    return header + bytes((index * 7 + seed) % 256 for index in range(elements * len(names)))


@pytest.fixture
def shard() -> Shard:
    """``shard(names, elements=16, seed=0)``: a safetensors file with these U8 tensors."""
    return make_shard


@pytest.fixture
def sharded() -> Checkpoint:
    """``sharded([["a", "b"], ["c"]])``: the files of a checkpoint with these tensors in its shards."""

    def make(groups: Sequence[Sequence[str]]) -> dict[str, bytes]:
        names = [f"model-{number + 1:05}-of-{len(groups):05}.safetensors" for number in range(len(groups))]
        weight_map = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        files = {
            file: make_shard(group, seed=number)
            for number, (file, group) in enumerate(zip(names, groups, strict=True))
        }
        files["model.safetensors.index.json"] = json.dumps(
            {"metadata": {}, "weight_map": weight_map}
        ).encode()
        return files

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """``folder(files)``: a fresh folder with these files."""

    def make(files: dict[str, bytes]) -> Path:
        target = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        for file, data in files.items():
            (target / file).write_bytes(data)
        return target

    return make
