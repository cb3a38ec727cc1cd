"""Tied copies that are found to differ before anything is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.engine.stream import untied
from hubextrap.tensors.tied import alike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.engine.plan import MergePlan
    from hubextrap.tensors.interfaces import Source


def check_twins(plan: MergePlan, sources: Sequence[Source]) -> None:
    """Look into tied copies, as far as `tied.alike` does; all their bytes are compared as they stream.

    Raises:
        CheckpointMismatch: copies differ; names the tensor, the checkpoint and its step.
        SourceError: they could not be read.
    """
    for tensor in (tensor for shard in plan.shards for tensor in shard.tensors if tensor.twins):
        for position, twin in tensor.twins:
            k = tensor.checkpoints[position]
            if not alike(sources[k], tensor.inputs[position], twin):
                called = f"step {plan.steps[k]} ({plan.layouts[k].name})"
                raise untied(called, tensor.name, twin.name, plan.steps[k])
