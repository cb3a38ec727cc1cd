"""Which files of a folder are weights, known from names and sizes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubextrap.trajectory.checkpoint import ADAPTER, BASE, MODEL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubextrap.trajectory.checkpoint import Checkpoint

WHOLE_MODEL, OTHER = "safetensors", "other"
"""Kinds of weights, best first: a whole model in safetensors; an adapter; pickles and other formats."""

PREDICTION_FILE = "hubextrap.json"
"""The provenance that hubextrap writes beside what it predicts."""

KINDS = (WHOLE_MODEL, ADAPTER, OTHER)
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".distcp", ".npz")
_TRAINER_STATE = re.compile("optim|training_args|scheduler|scaler|rng_state|random_states|trainer_state")

_SNAPSHOTS = re.compile(r"(?:^|/)reground/rank-\d+$")
"""Folders of a checkpoint that `ExtrapolationCallback` goes on from: parts of models, and no model."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What peft saves."""
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
THE_MODEL_IS_READ = "an adapter beside a whole model, and hubextrap reads the model"
_PREFERRED = (
    re.compile(re.escape(SINGLE)),
    SHARD,
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
    re.compile(re.escape(ADAPTER_FILE)),
    re.compile(r"adapter_model\.bin"),
)
"""What transformers or peft loads, the first that is there; the rest of the kind
(``consolidated.safetensors``, ``model.fp16.safetensors``) is the same model once more, or part of another."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files of one folder, of the best kind that is there; of that kind those that are loaded."""

    kind: str
    files: tuple[str, ...]
    """Base names, sorted."""
    size: int
    """Bytes of these files."""
    predicted: bool = False
    """Whether hubextrap made them; a prediction is no checkpoint of the run."""
    note: str | None = None
    """Where the folder can be taken for two models: which one counts."""

    def of(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, known to hold these."""
        holds = ADAPTER if self.kind == ADAPTER else MODEL
        kind = BASE if checkpoint.kind == BASE else holds
        return replace(checkpoint, size=self.size, note=self.note or checkpoint.note, kind=kind)


def kind_of(file: str) -> str | None:
    """The kind of weights a file holds by its base name, or None."""
    name = file.rsplit("/", 1)[-1].lower()
    if _TRAINER_STATE.search(name):
        return None
    if name.endswith(".safetensors"):
        return ADAPTER if name.startswith("adapter") else WHOLE_MODEL
    if name.endswith(_OTHER_SUFFIXES):
        return ADAPTER if name.startswith("adapter") else OTHER
    return None


def weights_of(files: Iterable[tuple[str, int]]) -> Weights | None:
    """The weights among one folder's files, given as (base name, bytes); None where there are none."""
    sizes = dict(files)
    kinds = {name: kind for name in sizes if (kind := kind_of(name)) is not None}
    if not kinds:
        return None
    best = min(kinds.values(), key=KINDS.index)
    found = sorted(name for name, kind in kinds.items() if kind == best)
    loaded = _loaded(found)
    return Weights(
        best,
        tuple(loaded),
        sum(sizes[name] for name in loaded),
        predicted=PREDICTION_FILE in sizes,
        note=_two_models(loaded, found, INDEX in sizes) or _and_an_adapter(loaded, kinds),
    )


def _loaded(found: list[str]) -> list[str]:
    """Of one folder's weight files those that transformers loads; all where none has a usual name."""
    for preferred in _PREFERRED:
        if chosen := [name for name in found if preferred.fullmatch(name)]:
            return chosen
    return [name for name in found if not name.startswith("consolidated")] or found


def _two_models(loaded: list[str], found: list[str], indexed: bool) -> str | None:
    shards = [name for name in found if SHARD.fullmatch(name)]
    if loaded != [SINGLE] or not (indexed or shards):
        return None
    others = [INDEX] * indexed + shards
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return (
        f"holds both {SINGLE} and {', '.join(others[:2])}{more}; transformers loads {SINGLE}, so "
        "hubextrap reads that"
    )


def _and_an_adapter(loaded: list[str], kinds: dict[str, str]) -> str | None:
    if ADAPTER not in kinds.values() or kinds[loaded[0]] != WHOLE_MODEL:
        return None
    return f"holds {THE_MODEL_IS_READ}, {loaded[0]}"


def weights_by_folder(files: Iterable[tuple[str, int]]) -> dict[str, Weights | None]:
    """The weights directly in each folder of a tree, from its files' paths and bytes; "" is its root."""
    folders: dict[str, list[tuple[str, int]]] = {"": []}
    for path, size in files:
        folder, _, name = path.rpartition("/")
        if _SNAPSHOTS.search(folder):
            continue
        folders.setdefault(folder, []).append((name, size))
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, [])
    return {folder: weights_of(inside) for folder, inside in folders.items()}
