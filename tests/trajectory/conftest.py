"""Tiny models and runs of them on the loopback Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pytest

from hubextrap.localhub import LocalHub

_CONFIG = {"config.json": b"{}", "tokenizer.json": b"{}"}


def _safetensors_bytes(seed: int = 0, dtype: str = "BF16") -> bytes:
    """A file of two tensors: 64 bytes of ``dtype`` that depend on ``seed``, and 4 bytes of F32."""
    header = {
        "__metadata__": {"format": "pt"},
        "weight": {
            "dtype": dtype,
            "shape": [32 if dtype in ("BF16", "F16") else 16],
            "data_offsets": [0, 64],
        },
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [64, 68]},
    }
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + seed.to_bytes(68, "little")


def _model(seed: int = 0, folder: str = "", dtype: str = "BF16") -> dict[str, bytes]:
    """The files of a model, in a folder."""
    prefix = f"{folder}/" if folder else ""
    files = {**_CONFIG, "model.safetensors": _safetensors_bytes(seed, dtype)}
    return {prefix + name: content for name, content in files.items()}


@pytest.fixture
def model() -> Callable[..., dict[str, bytes]]:
    """Makes the files of a tiny model: ``model(seed, folder, dtype)``."""
    return _model


@pytest.fixture
def safetensors_bytes() -> Callable[..., bytes]:
    """Makes a tiny safetensors file: ``safetensors_bytes(seed, dtype)``."""
    return _safetensors_bytes


MakeRun = Callable[..., dict[str, str]]


@pytest.fixture
def on_branches(hub: LocalHub, repo_id: str) -> MakeRun:
    """Makes the repo with a model on each of these branches; returns their commits."""

    def make(names: Iterable[str], **options: object) -> dict[str, str]:
        hub.create_repo(repo_id, **options)  # type: ignore[arg-type]
        return {
            name: hub.commit(repo_id, _model(seed), revision=name) for seed, name in enumerate(names, start=1)
        }

    return make


@pytest.fixture
def on_main(hub: LocalHub, repo_id: str) -> Callable[[dict[str, bytes]], str]:
    """Makes the repo with these files on main; returns the commit."""

    def make(files: dict[str, bytes]) -> str:
        hub.create_repo(repo_id)
        return hub.commit(repo_id, files)

    return make
