"""Checkpoints that are read here and that transformers and vLLM do not load."""

from __future__ import annotations

import json
from contextlib import closing
from shlex import quote
from typing import TYPE_CHECKING

from hubextrap.errors import UnsupportedCheckpoint
from hubextrap.tensors.assembled import beneath
from hubextrap.tensors.opening import open_source
from hubextrap.trajectory.weights import READABLE, WHOLE_MODEL, weights_of

if TYPE_CHECKING:
    from hubextrap.trajectory.checkpoint import Checkpoint


def refuse_pieces(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose weights lie in pieces, for those who have others load it.

    Raises:
        UnsupportedCheckpoint: it is one; says how it is written as safetensors.
        HubExtrapError: as `open_source`.
    """
    with closing(open_source(checkpoint)) as source:
        stored, _ = beneath(source, ())
        found = weights_of((file, info.size) for file, info in stored.files().items())
    if found is None or found.kind not in READABLE or found.kind == WHOLE_MODEL:
        return
    step = max(0, checkpoint.step)
    recipe = {
        "trajectory": {"checkpoints": [{"step": step, "model": checkpoint.name}]},
        "merge_method": "persistence",
        "parameters": {"target_step": step},
    }
    name = f"step-{step}"
    raise UnsupportedCheckpoint(
        f"{checkpoint.name}: its weights are {found.kind}, which neither transformers nor vLLM loads; write "
        f"it as safetensors and name that folder instead (beside a prediction: `hubextrap eval PREDICTION "
        f"--against last={name}`): echo {quote(json.dumps(recipe))} > {name}.yaml && hubextrap merge "
        f"{name}.yaml --out {name}",
        step=checkpoint.step,
        repo=checkpoint.repo,
    )
