"""What the record of a merge's unit says, checked: its shard for each target."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.errors import CorruptFile
from hubextrap.tensors.interfaces import FinishedShard, ShardInputs

if TYPE_CHECKING:
    from hubextrap.engine.plan import ShardPlan
    from hubextrap.work.records import Record

_HASH, _OF_INPUT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What is on record of a unit: its shard for each target."""

    inputs: ShardInputs
    shards: tuple[FinishedShard, ...]
    identical: tuple[bool, ...]
    small: tuple[bytes | None, ...]


def shard_record(record: Record, shard: ShardPlan, checkpoints: int, targets: int) -> ShardRecord:
    """What a record says, if it says that a planned shard was made.

    Args:
        shard: the plan's.
        checkpoints, targets: how many it is made from, and for.

    Raises:
        CorruptFile: it does not.
    """
    try:
        content = record.content
        inputs, compared, shards = content["inputs"], content["compared"], content["shards"]
        if not (type(compared) is bool and len(inputs) == checkpoints):
            raise ValueError("it is of other checkpoints")
        if not all(map(_OF_INPUT.fullmatch, inputs)):
            raise ValueError("an input has no hash")
        if len(shards) != targets:
            raise ValueError(f"it has {len(shards)} targets, and the plan {targets}")
        for one in shards:
            if (one["file"], one["size"]) != (shard.file, shard.size):
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
            f"the record of unit {record.unit} ({shard.file}) is none of a shard's ({error}); remove it, and "
            "the unit is done again"
        ) from error
