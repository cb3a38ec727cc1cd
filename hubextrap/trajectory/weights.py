"""Which files of a folder are weights, and of which kind, known from names and sizes alone.

This is the one place that says so: which folders are checkpoints follows from it, and so does whether a
folder can be read. What trainers keep beside weights (optimizers, data loaders, random numbers) is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubextrap.trajectory.checkpoint import ADAPTER, BASE, MODEL
from hubextrap.trajectory.converting import (
    BRIDGE,
    FLAX,
    GGUF,
    MEGATRON,
    PICKLE,
    PICKLES,
    TENSORFLOW,
    UNUSUAL,
    ZERO,
    conversion,
    said_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from hubextrap.trajectory.checkpoint import Checkpoint

WHOLE_MODEL, SHARDED, FSDP, DCP, OTHER = (
    "safetensors",
    "sharded safetensors",
    "FSDP shards",
    "torch DCP",
    "other",
)
"""Kinds of weights beside ``ADAPTER``: a whole model in safetensors; its tensors in slices, one file or more
for each rank: safetensors that torch wrote, verl's and SkyRL's files, or torch's distributed checkpoint; and
what cannot be read."""

READABLE = (WHOLE_MODEL, SHARDED, FSDP, DCP)
"""Kinds that hold a whole model and are read."""
KINDS = (WHOLE_MODEL, ADAPTER, SHARDED, FSDP, DCP, OTHER)
"""Best first. What lies in slices beside an adapter is the adapter once more, with its base."""
_FORMS = (*KINDS[:-1], PICKLE, MEGATRON, BRIDGE, ZERO, FLAX, TENSORFLOW, GGUF, UNUSUAL, PICKLES)
"""The same with the forms of ``OTHER``."""

DCP_FOLDER = "pytorch_model_fsdp_0"
"""Where accelerate puts the model of a checkpoint whose state is sharded."""
INNER_FOLDERS = (DCP_FOLDER, "huggingface", ".hf_metadata")
"""Folders in a checkpoint's folder that belong to it: of weights, and of configuration and tokenizer (verl
and SkyRL, NeMo)."""

CANNOT_BE_READ = "cannot be read: "
"""How the note on a checkpoint of kind ``OTHER`` begins."""

PREDICTION_FILE = "hubextrap.json"
"""The provenance that hubextrap writes beside what it predicts."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What peft saves."""
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
SHARDED_FILE = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")
"""The rank's number, from 1; the file of a whole model that its tensors would lie in, and how many those
are."""
FSDP_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
"""How many ranks there are, and which this is."""
DCP_METADATA, DCP_SUFFIX = ".metadata", ".distcp"

_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".npz")
_TRAINER_STATE = re.compile(
    "optim|training_args|scheduler|scaler|sampler|rng_state|random_states|trainer_state|train_state|dataloader|dataset|"
    r"^extra_state|^data\.pt$|^common\.pt$|^rng|^progress\.pt$"
)
_MEGATRON_FILE = re.compile(r"model_optim_rng\.pt|model_rng\.pt")
_MEGATRON_MARKS = ("common.pt", "metadata.json")
_BRIDGE_MARK = "run_config.yaml"
"""What Megatron Bridge writes into each checkpoint, and takes it from."""
_MODEL_PARALLEL = re.compile(r"mp_rank_\d+(?:_\d+)*")
"""Megatron's folder of one rank."""
_ZERO_FILE = re.compile(
    r"(?:zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt|layer_\d+-model_\d+-model_states\.pt"
)
_SUFFIX_FORMS = {".msgpack": FLAX, ".h5": TENSORFLOW, ".gguf": GGUF}
_HF_PICKLE = re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin")

_STATE_FOLDER = re.compile(
    r"(?:optim(?:izer)?s?(?:_\d+)?|(?:lr_)?schedulers?|(?:train_)?dataloader|orchestrator|rng|broadcasts?)"
)
"""Folders in which trainers keep their state, or weights for those who sample: no checkpoints."""
_SNAPSHOTS = re.compile(r"(?:^|/)reground/rank-\d+$")
"""Folders of a checkpoint that `ExtrapolationCallback` goes on from: parts of models, and no model."""

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
    """Paths from the folder, sorted: base names, but for those in an inner folder of weights."""
    size: int
    """Bytes of these files."""
    predicted: bool = False
    """Whether hubextrap made them; a prediction is no checkpoint of the run."""
    note: str | None = None
    """Where the folder can be taken for two models: which one counts."""
    form: str = ""
    """What a table calls the kind: of ``OTHER`` what it is instead, e.g. ``Megatron``."""

    def of(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, known to hold these."""
        holds = ADAPTER if self.kind == ADAPTER else MODEL
        kind = BASE if checkpoint.kind == BASE else holds
        note = f"{CANNOT_BE_READ}{self.said}" if self.kind == OTHER else self.note or checkpoint.note
        return replace(checkpoint, size=self.size, note=note, kind=kind, weights=self.form)

    def convert(self, checkpoints: Sequence[Checkpoint]) -> str:
        """The commands that make whole models of checkpoints that lie as this one does, as a loop over their
        folders; "" where none is known."""
        return conversion(self.form, checkpoints)[0]

    @property
    def said(self) -> str:
        """What these weights are where they are not read."""
        return said_of(self.form, self.files[0])


def kind_of(file: str) -> str | None:
    """The kind of weights a file holds by its base name, or None."""
    form = _form_of(file.rsplit("/", 1)[-1])
    return None if form is None else kind_of_form(form)


def _form_of(file: str) -> str | None:
    """The form of weights that a file of this base name is, whatever lies beside it."""
    name = file.lower()
    if _MEGATRON_FILE.fullmatch(name):
        return MEGATRON
    if _TRAINER_STATE.search(name):
        return None
    for pattern, form in (
        (FSDP_FILE, FSDP),
        (SHARDED_FILE, SHARDED),
        (_ZERO_FILE, ZERO),
        (_HF_PICKLE, PICKLE),
    ):
        if pattern.fullmatch(name):
            return form
    if name == DCP_METADATA or name.endswith(DCP_SUFFIX):
        return DCP
    if name.endswith((".safetensors", *_OTHER_SUFFIXES)) and name.startswith("adapter"):
        return ADAPTER
    if name.endswith(".safetensors"):
        return WHOLE_MODEL
    if name.endswith(_OTHER_SUFFIXES):
        return PICKLES
    return next((form for suffix, form in _SUFFIX_FORMS.items() if name.endswith(suffix)), None)


def weights_of(files: Iterable[tuple[str, int]]) -> Weights | None:
    """The weights of a checkpoint, from its files: path from its folder, and bytes; None where there are
    none.

    Of folders in it only those count that are known to hold its weights.
    """
    sizes = dict(files)
    forms: dict[str, str] = {}
    for folder in (
        "",
        *sorted({outer for name in sizes if _holds_weights(outer := name.rpartition("/")[0])}),
    ):
        forms |= _forms_in(folder, sizes)
    if not forms:
        return None
    best = min(forms.values(), key=_FORMS.index)
    found = sorted(name for name, form in forms.items() if form == best)
    loaded = _loaded(found)
    return Weights(
        kind_of_form(best),
        tuple(loaded),
        sum(sizes[name] for name in loaded),
        predicted=PREDICTION_FILE in sizes,
        note=_two_models(loaded, found, INDEX in sizes) or _and_an_adapter(loaded, forms),
        form=best,
    )


def _holds_weights(folder: str) -> bool:
    """Whether a folder in a checkpoint's, by its name, holds weights of that checkpoint."""
    return folder == DCP_FOLDER or _MODEL_PARALLEL.fullmatch(folder) is not None


def _forms_in(folder: str, sizes: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The weight files directly in one of a checkpoint's folders, with the form of each."""
    names = [name for name in sizes if name.rpartition("/")[0] == folder]
    bare = {name.rpartition("/")[2] for name in names}
    sliced = any(name.endswith(DCP_SUFFIX) for name in bare)
    usual = SINGLE in bare or INDEX in bare or any(map(SHARD.fullmatch, bare))
    for name in names:
        form = _form_of(name.rpartition("/")[2])
        if form == DCP and not sliced:  # the metadata of nothing
            continue
        if form == DCP and any(mark in bare for mark in _MEGATRON_MARKS):
            form = BRIDGE if _BRIDGE_MARK in bare else MEGATRON
        if form == WHOLE_MODEL and not usual:
            form = UNUSUAL
        if form is not None:
            yield name, form


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


def _and_an_adapter(loaded: list[str], forms: dict[str, str]) -> str | None:
    if ADAPTER not in forms.values() or forms[loaded[0]] != WHOLE_MODEL:
        return None
    return f"holds {THE_MODEL_IS_READ}, {loaded[0]}"


def inner_folders(files: Collection[str]) -> tuple[str, ...]:
    """The folders that belong to a checkpoint with these files beside them: a whole model has all at one
    place."""
    return () if SINGLE in files or INDEX in files else INNER_FOLDERS


def kind_of_form(form: str) -> str:
    """The kind that a form of weights is of; "" where it is not known."""
    return form if form in (*KINDS, "") else OTHER


def is_state(folder: str) -> bool:
    """Whether a folder, by its path, holds a trainer's state, or snapshots of its: no checkpoint of the
    run."""
    parts = folder.split("/")
    return any(map(_STATE_FOLDER.fullmatch, parts)) or _SNAPSHOTS.search(folder) is not None


def weights_by_folder(files: Iterable[tuple[str, int]]) -> dict[str, Weights | None]:
    """The weights in each folder of a tree, with those of its inner folders, from its files' paths and bytes;
    "" is its root."""
    folders: dict[str, list[tuple[str, int]]] = {"": []}
    for path, size in files:
        folder, _, name = path.rpartition("/")
        if is_state(folder):
            continue
        folders.setdefault(folder, []).append((name, size))
        outer, _, inner = folder.rpartition("/")
        if inner in INNER_FOLDERS or _holds_weights(inner):
            folders.setdefault(outer, []).append((f"{inner}/{name}", size))
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, [])
    return {folder: weights_of(inside) for folder, inside in folders.items()}
