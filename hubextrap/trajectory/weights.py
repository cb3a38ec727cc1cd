"""Which files of a folder are weights, known from names and sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

WHOLE_MODEL, ADAPTER, OTHER = "safetensors", "adapter", "other"
"""Kinds of weights, best first: a whole model in safetensors; an adapter; pickles and other formats."""

PREDICTION_FILE = "hubextrap.json"
"""The provenance that hubextrap writes beside what it predicts."""

_KINDS = (WHOLE_MODEL, ADAPTER, OTHER)
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".distcp", ".npz")
_TRAINER_STATE = (
    "optim",
    "training_args",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "trainer_state",
)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of one folder, of the best kind that is there."""

    kind: str
    files: tuple[str, ...]
    """Base names, sorted."""
    size: int
    """Bytes of these files."""
    predicted: bool = False
    """Whether hubextrap made them; a prediction is no checkpoint of the run."""


def kind_of(file: str) -> str | None:
    """The kind of weights a file holds by its base name, or None."""
    name = file.rsplit("/", 1)[-1].lower()
    if any(word in name for word in _TRAINER_STATE):
        return None
    if name.endswith(".safetensors"):
        return ADAPTER if name.startswith("adapter") else WHOLE_MODEL
    if name.endswith(_OTHER_SUFFIXES):
        return ADAPTER if name.startswith("adapter") else OTHER
    return None


def weights_of(files: Iterable[tuple[str, int]]) -> Weights | None:
    """The weights among one folder's files, given as (base name, bytes); None where there are none."""
    by_kind: dict[str, list[tuple[str, int]]] = {}
    predicted = False
    for name, size in files:
        predicted = predicted or name == PREDICTION_FILE
        if (kind := kind_of(name)) is not None:
            by_kind.setdefault(kind, []).append((name, size))
    for kind in _KINDS:
        if kind in by_kind:
            found = sorted(by_kind[kind])
            return Weights(kind, tuple(name for name, _ in found), sum(size for _, size in found), predicted)
    return None


def weights_by_folder(files: Iterable[tuple[str, int]]) -> dict[str, Weights | None]:
    """The weights directly in each folder of a tree, from its files' paths and bytes; "" is its root."""
    folders: dict[str, list[tuple[str, int]]] = {"": []}
    for path, size in files:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append((name, size))
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, [])
    return {folder: weights_of(inside) for folder, inside in folders.items()}


def better_of(kinds: Iterable[str]) -> str:
    """The best of these kinds."""
    return min(kinds, key=_KINDS.index)
