"""Everything that decides the bytes of a merge: what has to be the same for a stopped run to be resumed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__

if TYPE_CHECKING:
    from hubextrap.api.prepare import Prepared
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Checkpoint


def merge_fingerprint(prepared: Prepared) -> dict[str, str]:
    """The parts of the fingerprint by what messages call them.

    A checkpoint on the Hub counts by its commit; a local one by path, and size and modification time of each
    weight file.
    """
    plan = prepared.plan
    return {
        "the recipe": prepared.recipe.fingerprint(),
        **{
            f"the checkpoint of step {checkpoint.step}": input_fingerprint(checkpoint, source)
            for checkpoint, source in zip(prepared.trajectory.checkpoints, prepared.sources, strict=True)
        },
        "the coefficients": _digest(
            [(rule.match, rule.method, rows.tolist()) for rule, rows in prepared.rules]
        ),
        "the output's files": _digest(
            [(shard.file, shard.size, hashlib.sha256(shard.header).hexdigest()) for shard in plan.shards]
        ),
        "--allow-non-finite": str(prepared.settings.allow_non_finite),
        "the version of hubextrap": __version__,
        "the version of torch": version("torch"),
    }


def input_fingerprint(checkpoint: Checkpoint, source: Source) -> str:
    """What stands for a checkpoint's bytes."""
    if checkpoint.repo is not None:
        return f"{checkpoint.repo}@{checkpoint.commit}:{checkpoint.path}"
    files = {}
    for file, info in source.files().items():
        if file.endswith(".safetensors") and info.problem is None:
            status = Path(checkpoint.path, file).stat()
            files[file] = (status.st_size, status.st_mtime_ns)
    return _digest([checkpoint.path, files])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
