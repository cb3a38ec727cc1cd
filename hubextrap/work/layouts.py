"""Layouts and merge plans as JSON: what a worker needs of headers that somebody else has read.

What many checkpoints or tensors share is written once, so that a run of 671B weights and 16 checkpoints takes
some megabytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hubextrap.digests import sha256_of_json
from hubextrap.engine.budget import Buffers
from hubextrap.engine.plan import MergePlan, TensorPlan, shard_plan
from hubextrap.engine.units import Combination
from hubextrap.tensors.assembled import Assembly
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo, share_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hubextrap.tensors.assembled import Forms

_MARKS = ("left_out", "copied")
"""What a layout says of tensors beside where they lie; written where it says something."""


def layouts_as_json(layouts: Sequence[CheckpointLayout]) -> dict[str, Any]:
    """What `layouts_from_json` takes."""
    shards: dict[int, int] = {}
    held: list[dict[str, Any]] = []
    for layout in layouts:
        for shard in layout.shards:
            if id(shard) not in shards:
                shards[id(shard)] = len(held)
                held.append(_shard_as_json(shard))
    return {
        "shards": held,
        "checkpoints": [
            {
                "name": one.name,
                "index": one.index_file,
                "shards": [shards[id(shard)] for shard in one.shards],
                **({"held": one.held} if one.held else {}),
                **{mark: sorted(names) for mark in _MARKS if (names := getattr(one, mark))},
            }
            for one in layouts
        ],
    }


def layouts_from_json(stated: Mapping[str, Any]) -> list[CheckpointLayout]:
    """The layouts that `layouts_as_json` was given, equal shards shared."""
    shards = [_shard_from_json(shard) for shard in stated["shards"]]
    layouts = [
        CheckpointLayout(
            one["name"],
            tuple(shards[number] for number in one["shards"]),
            one["index"],
            held=one.get("held", 0),
            **{mark: frozenset(one[mark]) for mark in _MARKS if mark in one},
        )
        for one in stated["checkpoints"]
    ]
    share_tensors(layouts)
    return layouts


def forms_as_json(forms: Sequence[Forms]) -> dict[str, Any]:
    """What `forms_from_json` takes, of each checkpoint; empty where all are read as they are stored."""
    if not any(forms):
        return {}
    numbers: dict[str, int] = {}
    held: list[dict[str, Any]] = []

    def number(assembly: Assembly) -> int:
        stated = assembly.to_json()
        found = numbers.setdefault(sha256_of_json(stated), len(held))
        if found == len(held):
            held.append(stated)
        return found

    of = [[[list(inner), number(one)] for inner, one in each] for each in forms]
    return {"forms": {"assemblies": held, "checkpoints": of}}


def forms_from_json(stated: Mapping[str, Any]) -> tuple[Forms, ...]:
    """What `forms_as_json` was given, in a mapping with what else is stated."""
    if "forms" not in stated:
        return ()
    held = [Assembly.from_json(one) for one in stated["forms"]["assemblies"]]
    return tuple(
        tuple((tuple(inner), held[number]) for inner, number in each)
        for each in stated["forms"]["checkpoints"]
    )


def merge_as_json(plan: MergePlan) -> dict[str, Any]:
    """What `merge_from_json` takes, beside the layouts."""
    forms: dict[tuple[Any, ...], int] = {}
    shards = [
        {"file": shard.file, "tensors": [_tensor_as_json(tensor, forms) for tensor in shard.tensors]}
        for shard in plan.shards
    ]
    buffers = plan.buffers
    return {
        "steps": list(plan.steps),
        "targets": plan.targets,
        "forms": [
            {"checkpoints": checkpoints, "rows": [[row.kind, row.indices, row.weights] for row in rows]}
            for checkpoints, rows in forms
        ],
        "shards": shards,
        "buffers": [
            buffers.workers, buffers.readers, buffers.unit_bytes, buffers.peak_memory, buffers.least_memory
        ],
        "accumulator": plan.accumulator_itemsize,
        **({"wide": True} if plan.wide else {}),
        "same_layout": plan.same_layout,
    }  # fmt: skip


def merge_from_json(stated: Mapping[str, Any], layouts: Sequence[CheckpointLayout]) -> MergePlan:
    """The plan that `merge_as_json` was given, without what workers do not need: index, notes, caveats."""
    forms = [
        (
            tuple(form["checkpoints"]),
            tuple(Combination(kind, tuple(at), tuple(weights)) for kind, at, weights in form["rows"]),
        )
        for form in stated["forms"]
    ]
    files = {shard.file: shard for shard in layouts[-1].shards}
    shards = [
        shard_plan(
            files[one["file"]], tuple(_tensor_from_json(tensor, forms, layouts) for tensor in one["tensors"])
        )
        for one in stated["shards"]
    ]
    targets = stated["targets"]
    return MergePlan(
        steps=tuple(stated["steps"]),
        layouts=tuple(layouts),
        targets=targets,
        shards=tuple(shards),
        index_file=None,
        index=b"",
        total_bytes_read=sum(shard.bytes_read for shard in shards),
        total_bytes_written=targets * sum(shard.size for shard in shards),
        buffers=Buffers(*stated["buffers"]),
        accumulator_itemsize=stated["accumulator"],
        same_layout=stated["same_layout"],
        notes=(),
        caveats=(),
        wide=stated.get("wide", False),
    )


def _shard_as_json(shard: ShardInfo) -> dict[str, Any]:
    return {
        "file": shard.file,
        "size": shard.size,
        "header": shard.header_sha256,
        "metadata": shard.metadata,
        "tensors": [[one.name, one.dtype, one.shape, one.offset] for one in shard.tensors],
    }


def _shard_from_json(stated: Mapping[str, Any]) -> ShardInfo:
    file = stated["file"]
    tensors = tuple(
        TensorInfo(
            name, dtype, tuple(shape), file, offset, math.prod(shape) * DTYPES[dtype].itemsize
        )
        for name, dtype, shape, offset in stated["tensors"]
    )  # fmt: skip
    return ShardInfo(file, stated["size"], tensors, stated["metadata"], stated["header"])


def _tensor_as_json(tensor: TensorPlan, forms: dict[tuple[Any, ...], int]) -> list[Any]:
    """Name, dtype, form; where tied copies have other names, what each checkpoint calls it, and its twins."""
    form = forms.setdefault((tensor.checkpoints, tensor.combinations), len(forms))
    names = [info.name for info in tensor.inputs]
    twins = [[position, twin.name] for position, twin in tensor.twins]
    stored = [tensor.name, tensor.dtype, form]
    return stored if not twins and set(names) == {tensor.name} else [*stored, names, twins]


def _tensor_from_json(
    stated: Sequence[Any],
    forms: Sequence[tuple[tuple[int, ...], tuple[Combination, ...]]],
    layouts: Sequence[CheckpointLayout],
) -> TensorPlan:
    name, dtype, form, *rest = stated
    checkpoints, combinations = forms[form]
    names, twins = rest or ([name] * len(checkpoints), ())
    held = [layouts[k].tensors for k in checkpoints]
    inputs = tuple(tensors[alias] for tensors, alias in zip(held, names, strict=True))
    shape = inputs[-1].shape
    return TensorPlan(
        name=name,
        elements=math.prod(shape),
        checkpoints=checkpoints,
        inputs=inputs,
        twins=tuple((position, held[position][alias]) for position, alias in twins),
        dtype=dtype,
        shape=shape,
        combinations=combinations,
    )
