"""What the records of a merge's units come to: the shards of each target."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
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
        try:
            content = record.content
            inputs = ShardInputs(tuple(content["inputs"]), content["compared"])
            for target, one in zip(found, content["shards"], strict=True):
                shard = FinishedShard(one["file"], one["size"], one["sha256"])
                if shard.file != plan.labels[unit]:
                    raise ValueError(f"it is of {shard.file}")
                target.shards[shard.file], target.inputs[shard.file] = shard, inputs
                target.identical &= one["identical"]
                if one["small"] is not None:
                    target.small[shard.file] = b64decode(one["small"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(
                f"the record of unit {unit} ({plan.labels[unit]}) is none of a shard's ({error}); remove "
                "it, and the unit is done again"
            ) from error
    return found


def strike(plan: WorkPlan, kept: Records, files: Collection[str]) -> None:
    """Take shards off the record, so that they are made again.

    Raises:
        OutputError: it could not be written.
    """
    for unit in plan.shard_units:
        if plan.labels[unit] in files:
            kept.strike(unit)
