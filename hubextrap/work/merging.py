"""What the records of a merge's units come to: the shards of each target."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hubextrap.work.plan import WorkPlan
    from hubextrap.work.records import Record, Records

_HASH, _OF_INPUT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]*")


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


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What is on record of a unit: its shard for each target."""

    inputs: ShardInputs
    shards: tuple[FinishedShard, ...]
    identical: tuple[bool, ...]
    small: tuple[bytes | None, ...]


def shard_record(plan: WorkPlan, record: Record) -> ShardRecord:
    """What a record says, if it says that the planned files were made.

    Raises:
        CorruptFile: it does not.
    """
    label = plan.labels[record.unit]
    try:
        content = record.content
        inputs, compared, shards = content["inputs"], content["compared"], content["shards"]
        if not (type(compared) is bool and len(inputs) == len(plan.checkpoints)):
            raise ValueError("it is of other checkpoints")
        if not all(map(_OF_INPUT.fullmatch, inputs)):
            raise ValueError("an input has no hash")
        if len(shards) != len(plan.outputs):
            raise ValueError(f"it has {len(shards)} targets, and the plan {len(plan.outputs)}")
        for one in shards:
            if (one["file"], one["size"]) != (label, plan.merge.shards[record.unit].size):
                raise ValueError(f"it is of {one['file']!r} with {one['size']!r} bytes")
            if not _HASH.fullmatch(one["sha256"]) or type(one["identical"]) is not bool:
                raise ValueError("a shard has no sha256")
        return ShardRecord(
            ShardInputs(tuple(inputs), compared),
            tuple(FinishedShard(one["file"], one["size"], one["sha256"]) for one in shards),
            tuple(one["identical"] for one in shards),
            tuple(None if one["small"] is None else b64decode(one["small"]) for one in shards),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"the record of unit {record.unit} ({label}) is none of a shard's ({error}); remove it, and the "
            "unit is done again"
        ) from error


def target_shards(plan: WorkPlan, records: Mapping[int, Record]) -> tuple[TargetShards, ...]:
    """One per target of the plan.

    Raises:
        CorruptFile: a record does not say what a shard's says.
    """
    found = tuple(TargetShards(identical=plan.merge.same_layout) for _ in plan.outputs)
    for unit in plan.shard_units:
        if (record := records.get(unit)) is None:
            continue
        made = shard_record(plan, record)
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
