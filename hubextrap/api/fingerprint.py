"""Everything that decides the bytes of a merge: what has to be the same for a stopped run to be resumed."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.digests import sha256_hex, sha256_of_json
from hubextrap.opening import commit_fingerprint

if TYPE_CHECKING:
    from hubextrap.api.prepare import Prepared
    from hubextrap.engine import MergePlan
    from hubextrap.opening import Run
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Checkpoint


def merge_fingerprint(prepared: Prepared) -> dict[str, str]:
    """The parts of the fingerprint by what messages call them.

    A checkpoint on the Hub counts by its commit; a local one by path, and size and header of each weight
    file: the journal says what was read of the tensors.
    """
    plan = prepared.plan
    return (
        {"the recipe": prepared.recipe.fingerprint()}
        | inputs_fingerprint(prepared.run, plan)
        | {
            "the coefficients": sha256_of_json(
                [(rule.match, rule.method, rows.tolist()) for rule, rows in prepared.rules]
            ),
            "the output's files": sha256_of_json(
                [(shard.file, shard.size, sha256_hex(shard.header)) for shard in plan.shards]
            ),
            "--allow-non-finite": str(prepared.settings.allow_non_finite),
        }
    )


def inputs_fingerprint(run: Run, plan: MergePlan) -> dict[str, str]:
    """What the bytes of any prediction follow from: the checkpoints, and the programs that add them up."""
    return {
        **{
            f"the checkpoint of step {checkpoint.step}": _header_fingerprint(checkpoint, layout)
            for checkpoint, layout in zip(run.trajectory.checkpoints, plan.layouts, strict=True)
        },
        "the version of hubextrap": __version__,
        "the version of torch": version("torch"),
    }


def _header_fingerprint(checkpoint: Checkpoint, layout: CheckpointLayout) -> str:
    """What stands for a checkpoint's bytes, those of a local one's tensors aside."""
    return commit_fingerprint(checkpoint) or sha256_of_json(
        [checkpoint.path, [(one.file, one.size, one.header_sha256) for one in layout.shards]]
    )
