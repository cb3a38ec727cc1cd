"""Checkpoints as trainers leave them, read as if they were safetensors: the formats, and what parses each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile, UnsupportedCheckpoint
from hubextrap.tensors.assembled import AssembledSource, Assembly, arranged
from hubextrap.tensors.interfaces import Source
from hubextrap.tensors.names import without_wrappers
from hubextrap.tensors.pieces import StoredTensor
from hubextrap.tensors.sharded import read_sharded
from hubextrap.tensors.torch_files import read_dcp, read_fsdp
from hubextrap.trajectory.weights import DCP, FSDP, INNER_FOLDERS, SHARDED, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Parser = Callable[[Source, Sequence[str]], Sequence[StoredTensor]]
FORMATS: Mapping[str, Parser] = {SHARDED: read_sharded, FSDP: read_fsdp, DCP: read_dcp}
"""What finds the tensors of a checkpoint in its files, by the kind of its weights."""


def as_safetensors(stored: Source, form: str) -> Source:
    """The checkpoint as safetensors files; the same source where it holds such.

    Args:
        form: of its weights, by `weights.kind_of`; "" where that is not known.
    """
    if form not in FORMATS:
        return stored
    return AssembledSource(stored, partial(_assembly, stored), INNER_FOLDERS)


def _assembly(stored: Source) -> Assembly:
    """How the tensors lie in the files.

    Raises:
        UnsupportedCheckpoint, CorruptFile: they are not of a form that can be read, or broken.
        SourceError: they could not be read.
    """
    weights = weights_of((name, info.size) for name, info in stored.files().items())
    if weights is None or weights.kind not in FORMATS:
        raise UnsupportedCheckpoint(f"{stored.name}: its weights changed since they were listed; run again")
    tensors = FORMATS[weights.kind](stored, weights.files)
    if not tensors:
        raise CorruptFile(f"{stored.name}: its weight files hold no tensors of a model; save it again")
    bare = without_wrappers([one.name for one in tensors])  # as save_pretrained saves and orders them
    return arranged([(bare.get(one.name, one.name), one.parts) for one in tensors], hides=weights.files)
