"""What a plan tells beside its figures: dtypes that differ or change, and what is not predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.engine.comparison import FLOATS
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.engine.plan import TensorPlan
    from hubextrap.tensors.layout import CheckpointLayout

LISTED_NAMES = 3


def dtype_notes(steps: Sequence[int], layouts: Sequence[CheckpointLayout]) -> list[str]:
    """The float dtypes of each step, where they differ."""
    stored = {
        step: "/".join(
            sorted({t.dtype for shard in layout.shards for t in shard.tensors if t.dtype in FLOATS})
        )
        for step, layout in zip(steps, layouts, strict=True)
    }
    if len(set(stored.values())) < 2:
        return []
    return ["dtypes differ: " + ", ".join(f"step {step} {dtype}" for step, dtype in stored.items())]


def narrowed(out_dtype: str | None, plans: Sequence[TensorPlan], last: CheckpointLayout) -> list[str]:
    """What ``out_dtype`` stores in fewer bits than the last checkpoint does."""
    stored = {name: DTYPES[info.dtype].itemsize for name, info in last.tensors.items()}
    found = [plan for plan in plans if plan.itemsize < stored[plan.name]]
    return [f"out_dtype: {out_dtype} narrows {_count(found, plans)}"] if found else []


def kept_wide(out_dtype: str | None, plans: Sequence[TensorPlan]) -> list[str]:
    """What stays wider than ``out_dtype`` (safetensors name)."""
    found = [plan for plan in plans if out_dtype and plan.dtype in FLOATS and plan.dtype != out_dtype]
    if not found:
        return []
    stored = "/".join(sorted({plan.dtype for plan in found}))
    which = f"{_count(found, plans)}: {_named(found)}"
    return [f"out_dtype leaves in {stored} what the last checkpoint keeps wider than the rest: {which}"]


def copied(plans: Sequence[TensorPlan], last: int) -> list[str]:
    """What comes from the last checkpoint (its number) as it is, unless that is everything."""
    found = [
        plan
        for plan in plans
        if not plan.combinations
        or (plan.checkpoints == (last,) and all(row.kind == "copy" for row in plan.combinations))
    ]
    if len(found) in (0, len(plans)):
        return []
    return [f"copied from the last checkpoint, not predicted: {_count(found, plans)}: {_named(found)}"]


def _count(some: Sequence[TensorPlan], plans: Sequence[TensorPlan]) -> str:
    size = sum(plan.elements * plan.itemsize for plan in some)
    share = size / max(1, sum(plan.elements * plan.itemsize for plan in plans))
    return f"{len(some):,} of {len(plans):,} tensors, {size:,} bytes ({share:.1%})"


def _named(plans: Sequence[TensorPlan]) -> str:
    return ", ".join(plan.name for plan in plans[:LISTED_NAMES]) + (" …" if len(plans) > LISTED_NAMES else "")
