"""What the records of a merge's units come to: the shards of each target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hubextrap.work.plan import WorkPlan
    from hubextrap.work.records import Record, Records


@dataclass
class TargetShards:
    """The shards of one target that are on record."""

    shards: dict[str, FinishedShard] = field(default_factory=dict)
    """By file."""
    inputs: dict[str, ShardInputs] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    """Those that the Hub takes only in a commit, in full."""
    identical: bool = True
    """Every byte so far is the last checkpoint's."""


def target_shards(plan: WorkPlan, records: Mapping[int, Record]) -> tuple[TargetShards, ...]:
    """One per target of the plan.

    Raises:
        CorruptFile: a record does not say what a shard's says.
    """
    found = tuple(TargetShards(identical=plan.merge.same_layout) for _ in plan.outputs)
    for unit in plan.shard_units:
        if (record := records.get(unit)) is None:
            continue
        made = plan.shard_record(record)
        for target, shard, same, small in zip(found, made.shards, made.identical, made.small, strict=True):
            target.shards[shard.file], target.inputs[shard.file] = shard, made.inputs
            target.identical &= same
            if small is not None:
                target.small[shard.file] = small
    return found


def strike(plan: WorkPlan, kept: Records, files: Collection[str]) -> None:
    """Take shards off the record, so that they are made again.

    Raises:
        OutputError: it could not be written.
    """
    for unit in plan.shard_units:
        if plan.labels[unit] in files:
            kept.strike(unit)
