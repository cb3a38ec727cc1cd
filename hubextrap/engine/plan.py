"""What a merge will do, from headers and coefficients alone: no byte of a tensor is read here.

The output has the last checkpoint's files with its tensors in offset order. Each shard is cut into units: a
unit is a run of consecutive output bytes that one worker reads, combines and hands to the sink. Small tensors
share a unit, a large one spans many, so reads are long whatever the tensors' sizes, and memory does not
depend on them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.engine.budget import Budget, allot, held
from hubextrap.engine.comparison import FLOATS, TensorInputs, compare, dtype_notes, uncombinable
from hubextrap.engine.cutting import Room, aligned, cut, lay_out
from hubextrap.engine.defaults import MiB
from hubextrap.engine.findings import refuse
from hubextrap.engine.kernels import BLOCK
from hubextrap.engine.units import Combination, Form, MergeUnit
from hubextrap.errors import MethodError, RecipeError
from hubextrap.tensors.blocks import WRITE_BUFFERS, WRITE_SIZE
from hubextrap.tensors.headers import DTYPES, build_header

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.budget import Buffers
    from hubextrap.tensors.layout import CheckpointLayout, ShardInfo

LOCAL_READ_SIZE = MiB
"""Bytes of one checkpoint that a unit reads from a disk: a unit should stay in the processor's caches."""
HELD_COEFFICIENT = 500
"""Bytes of a coefficient that follows from the weights: table, plan, provenance and its JSON."""
WRITE_MEMORY = 2 * WRITE_BUFFERS * WRITE_SIZE
"""A target's blocks on their way to the disk, of the shard being made and of the one being finished."""
LISTED_NAMES = 3
_PERSISTENCE = "give it a rule with the method persistence"


@dataclass(frozen=True, slots=True)
class TensorPlan(TensorInputs):
    """One tensor of the output. It is read from those with a coefficient other than 0 for some target."""

    dtype: str
    shape: tuple[int, ...]
    combinations: tuple[Combination, ...]
    """One per target; empty for a tensor that is copied and has to be the same in all ``inputs``."""

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file of the output."""

    file: str
    header: bytes
    size: int
    tensors: tuple[TensorPlan, ...]
    """In offset order."""

    @property
    def bytes_read(self) -> int:
        """Bytes of all checkpoints together that go into it, as they are stored."""
        return sum(plan.bytes_stored for plan in self.tensors)

    @property
    def bytes_taken(self) -> int:
        """The same, as they are read: more, where they are dequantised."""
        return sum(plan.bytes_read for plan in self.tensors)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that is known before the first byte moves."""

    steps: tuple[int, ...]
    layouts: tuple[CheckpointLayout, ...]
    """What lies where in them."""
    targets: int
    """Outputs that are made in one pass."""
    shards: tuple[ShardPlan, ...]
    index_file: str | None
    index: bytes
    """Content of ``index_file``; the caller writes it beside the shards."""
    total_bytes_read: int
    """As they are stored: what is dequantised takes less there than it is read as."""
    total_bytes_written: int
    """Of all targets together."""
    buffers: Buffers
    accumulator_itemsize: int
    """Bytes of the widest sum: 8 where an output is F64 or the plan is wide, else 4."""
    same_layout: bool
    """Whether the output's files look like the last checkpoint's, so that it could come out identical."""
    notes: tuple[str, ...]
    """Facts about the inputs and what is done with them."""
    caveats: tuple[str, ...]
    """What whoever uses the output should know too: what was not predicted, what is stored otherwise."""
    wide: bool = False
    """Whether sums are taken in float64, whatever is stored."""

    @property
    def peak_memory(self) -> int:
        """Estimate of the process's peak resident memory, bytes."""
        return self.buffers.peak_memory

    def units(self, shard: ShardPlan) -> Iterator[MergeUnit]:
        """Those of one shard in offset order; a shard without data is one empty unit."""
        offset = len(shard.header)
        forms = {one.name: Form(one.dtype, one.combinations, self.wide) for one in shard.tensors}
        every = cut(shard.tensors, self.buffers.unit_bytes, Room(self.targets))
        for cuts in every if offset < shard.size else [[]]:
            pieces, reads, position = lay_out(cuts)
            size = sum(one.count * one.tensor.itemsize for one in cuts)
            yield MergeUnit(
                pieces,
                reads,
                shard.file,
                offset,
                size,
                begins_file=offset == len(shard.header),
                ends_file=offset + size == shard.size,
                outputs=tuple(position + target * aligned(size) for target in range(self.targets)),
                forms=tuple(forms[piece.tensor] for piece in pieces),
            )
            offset += size


def plan_merge(
    steps: Sequence[int],
    layouts: Sequence[CheckpointLayout],
    coefficients_for: Callable[[str], NDArray[np.float64]],
    *,
    out_dtype: str | None = None,
    tied: bool = False,
    budget: Budget | None = None,
    wide: bool = False,
) -> MergePlan:
    """Plan the outputs of T targets from K checkpoints.

    A checkpoint with coefficient 0 is not read, so a NaN in it does not spread (0·NaN would be NaN).

    Args:
        coefficients_for: tensor name → float64 (T, K).
        out_dtype: torch's name (``bfloat16``) for the float tensors, but those that the last checkpoint keeps
            wider than most of it: there they stay as they are. None keeps the last checkpoint's dtypes.
        tied: the last checkpoint's tie_word_embeddings.
        wide: sum in float64 and round that once, as terms that are F64 themselves ask for.

    Raises:
        CheckpointMismatch: names, shapes, dtypes or tying differ; all findings in one message.
        MethodError: coefficients that are not finite, or all 0.
        RecipeError: an out_dtype that is none.
        OutputError: memory is too small; the message says how much is needed.
    """
    last, dtype = layouts[-1], output_dtype(out_dtype)
    entries, problems, notes = compare(steps, layouts, tied=tied)
    targets, rows_for = _copying(coefficients_for, entries, last.copied)
    dtype_of, forms = _dtypes(dtype, last), dict[int, _Form]()
    plans = {one.name: _tensor_plan(one, rows_for(one.name), dtype_of, forms) for one in entries}
    for plan in (one for one in plans.values() if len(one.inputs) > 1):
        problems += uncombinable(plan.name, plan.inputs[-1].dtype, _PERSISTENCE)
    refuse(problems, layouts)
    shards = _shards(last, plans)
    every = [plan for shard in shards for plan in shard.tensors]
    itemsize, budget = 8 if wide or any(plan.dtype == "F64" for plan in every) else 4, budget or Budget()
    # what a worker's kernels need beside its buffer: one input, and a sum per target
    beside = budget.workers * BLOCK * (targets + 1) * itemsize + targets * WRITE_MEMORY
    beside += held(layouts, len(every), len(forms) * targets * len(layouts) * HELD_COEFFICIENT)
    return MergePlan(
        steps=tuple(steps),
        layouts=tuple(layouts),
        targets=targets,
        shards=tuple(shards),
        index_file=last.index_file,
        index=_index(shards) if last.index_file else b"",
        total_bytes_read=sum(plan.bytes_stored for plan in every),
        total_bytes_written=targets * sum(shard.size for shard in shards),
        buffers=allot(budget, every, Room(targets), local_read_size=LOCAL_READ_SIZE, beside=beside),
        accumulator_itemsize=itemsize,
        same_layout=_as_in(last, every),
        notes=(*notes, *([] if wide else dtype_notes(steps, layouts)), *_narrowed(out_dtype, every, last)),
        caveats=(*_dequantised(every, last), *_kept_wide(dtype, every), *_copied(every, layouts, wide)),
        wide=wide,
    )


def combination(coefficients: NDArray[np.float64], checkpoints: Sequence[int]) -> Combination:
    """The form in which a row of K coefficients is computed; ``checkpoints`` are those that are read."""
    used = [(i, float(coefficients[k])) for i, k in enumerate(checkpoints) if coefficients[k] != 0]
    indices, weights = tuple(i for i, _ in used), tuple(weight for _, weight in used)
    if weights == (1.0,):
        return Combination("copy", indices, weights)
    if len(weights) == 2 and abs(sum(weights) - 1) <= 1e-12 * (abs(weights[0]) + abs(weights[1])):
        return Combination("line", indices, weights)
    return Combination("sum", indices, weights)


def _copying(
    coefficients_for: Callable[[str], NDArray[np.float64]],
    entries: Sequence[TensorInputs],
    copied: Collection[str],
) -> tuple[int, Callable[[str], NDArray[np.float64]]]:
    """The number of targets, and every tensor's coefficients: those of persistence for what is copied."""
    first = next((one for one in entries if one.name not in copied), None)
    targets = 1 if first is None else len(coefficients_for(first.name))
    if not copied:
        return targets, coefficients_for
    persistence = np.zeros((targets, len(entries[0].inputs)))
    persistence[:, -1] = 1.0
    return targets, lambda name: persistence if name in copied else coefficients_for(name)


@dataclass(frozen=True, slots=True)
class _Form:
    """How tensors of the same coefficients are made; they share it."""

    coefficients: NDArray[np.float64]
    """Held, so that no other array gets its id."""
    checkpoints: tuple[int, ...]
    combinations: tuple[Combination, ...]


def _tensor_plan(
    entry: TensorInputs,
    coefficients: NDArray[np.float64],
    dtype_of: Callable[[str], str],
    forms: dict[int, _Form],
) -> TensorPlan:
    reference = entry.inputs[-1]
    combined = reference.dtype in FLOATS
    form = forms.get(id(coefficients)) if combined else None
    if form is None:
        form = _form(entry, coefficients, combined)
        if combined:
            forms[id(coefficients)] = form
    inputs, twins, checkpoints = entry.inputs, entry.twins, form.checkpoints
    if len(checkpoints) < len(inputs):
        inputs, copies = tuple(inputs[k] for k in checkpoints), dict(twins)
        twins = tuple((i, copies[k]) for i, k in enumerate(checkpoints) if k in copies)
    return TensorPlan(
        name=entry.name,
        elements=entry.elements,
        checkpoints=checkpoints,
        inputs=inputs,
        twins=twins,
        dtype=dtype_of(reference.written) if combined else reference.dtype,
        shape=reference.shape,
        combinations=form.combinations,
    )


def _form(entry: TensorInputs, coefficients: NDArray[np.float64], combined: bool) -> _Form:
    if coefficients.ndim != 2 or coefficients.shape[1] != len(entry.inputs):
        raise ValueError(
            f"{entry.name}: coefficients of shape {coefficients.shape} for {len(entry.inputs)} checkpoints"
        )
    if not np.isfinite(coefficients).all():
        raise MethodError(
            f"{entry.name}: its coefficients {coefficients.tolist()} are not finite; check steps and target",
            tensor=entry.name,
        )
    if not coefficients.any(axis=1).all():
        raise MethodError(
            f"{entry.name}: its coefficients are all 0; check the method that its rule names",
            tensor=entry.name,
        )
    used = set(np.flatnonzero(coefficients.any(axis=0)).tolist())
    checkpoints = tuple(sorted(used if combined else used | {len(entry.inputs) - 1}))
    combinations = tuple(combination(row, checkpoints) for row in coefficients) if combined else ()
    return _Form(coefficients, checkpoints, combinations)


def output_dtype(out_dtype: str | None) -> str | None:
    """The safetensors name of what a recipe asks for by torch's, None for None.

    Raises:
        RecipeError: it is none that can be combined.
    """
    if out_dtype is None:
        return None
    names = {DTYPES[name].torch_name: name for name in FLOATS}
    if out_dtype not in names:
        raise RecipeError(f"out_dtype: {out_dtype!r} is not one of {', '.join(names)}")
    return names[out_dtype]


def _dtypes(out_dtype: str | None, last: CheckpointLayout) -> Callable[[str], str]:
    """A float tensor's dtype in the output, by its dtype in the last checkpoint.

    What a trainer keeps wider than the model (router biases of DeepSeek's kind, A_log of Mamba's) it keeps so
    because rounding breaks it. The model's own dtype is that of most bytes or of most tensors, whichever is
    narrower: a few large tensors may be the wide ones. Of as many tensors, bytes decide.
    """
    if out_dtype is None:
        return lambda stored: stored
    size, count = Counter[str](), Counter[str]()
    for info in last.tensors.values():
        if info.written in FLOATS:
            size[info.written] += math.prod(info.shape) * DTYPES[info.written].itemsize
            count[info.written] += 1
    orders = (lambda one: (size[one], 0), lambda one: (count[one], size[one]))
    commonest = [max(size, key=order) for order in orders if size]
    most = min((DTYPES[dtype].itemsize for dtype in commonest), default=DTYPES[out_dtype].itemsize)

    def dtype_of(stored: str) -> str:
        width = DTYPES[stored].itemsize
        return stored if width > most and width > DTYPES[out_dtype].itemsize else out_dtype

    return dtype_of


def _shards(last: CheckpointLayout, plans: Mapping[str, TensorPlan]) -> list[ShardPlan]:
    """The last checkpoint's files, those left out that hold nothing of the output."""
    shards = []
    for shard in last.shards:
        tensors = tuple(plans[info.name] for info in shard.tensors if info.name in plans)
        if tensors:
            shards.append(shard_plan(shard, tensors))
    return shards


def shard_plan(like: ShardInfo, tensors: tuple[TensorPlan, ...]) -> ShardPlan:
    """The file of the output that takes the place of the last checkpoint's."""
    header = build_header(
        [(plan.name, plan.dtype, plan.shape) for plan in tensors], {"format": "pt"} | like.metadata
    )
    size = len(header) + sum(plan.elements * plan.itemsize for plan in tensors)
    return ShardPlan(like.file, header, size, tensors)


def _index(shards: Sequence[ShardPlan]) -> bytes:
    """The index JSON as transformers writes it."""
    weight_map = {plan.name: shard.file for shard in shards for plan in shard.tensors}
    total = sum(plan.elements * plan.itemsize for shard in shards for plan in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _narrowed(out_dtype: str | None, plans: Sequence[TensorPlan], last: CheckpointLayout) -> list[str]:
    """What ``out_dtype`` stores in fewer bits than the last checkpoint does."""
    stored = {name: DTYPES[info.written].itemsize for name, info in last.tensors.items()}
    found = [plan for plan in plans if plan.itemsize < stored[plan.name]]
    return [f"out_dtype: {out_dtype} narrows {_count(found, plans)}"] if found else []


def _dequantised(plans: Sequence[TensorPlan], last: CheckpointLayout) -> list[str]:
    """What the last checkpoint stores quantised, and the output does not."""
    found = [plan for plan in plans if last.tensors[plan.name].writes]
    if not found:
        return []
    written = "/".join(sorted({plan.dtype for plan in found}))
    said = f"{_count(found, plans)} are written as {written}, and config.json has no quantization_config"
    return [f"the last checkpoint's weights are quantised, the prediction's are not: {said}"]


def _kept_wide(out_dtype: str | None, plans: Sequence[TensorPlan]) -> list[str]:
    """What stays wider than ``out_dtype`` (safetensors name)."""
    found = [plan for plan in plans if out_dtype and plan.dtype in FLOATS and plan.dtype != out_dtype]
    if not found:
        return []
    stored = "/".join(sorted({plan.dtype for plan in found}))
    which = f"in {stored}: {_count(found, plans)}: {_named(found)}"
    return [f"out_dtype does not narrow what the last checkpoint keeps wider than the rest, {which}"]


def _as_in(last: CheckpointLayout, plans: Sequence[TensorPlan]) -> bool:
    """Whether an output is stored as the last checkpoint is."""
    stored = last.tensors
    return len(plans) == len(stored) and all(plan.dtype == stored[plan.name].dtype for plan in plans)


def _copied(plans: Sequence[TensorPlan], layouts: Sequence[CheckpointLayout], wide: bool) -> list[str]:
    """What comes from the last checkpoint as it is, unless everything does, or the plan is ``wide``."""
    last = len(layouts) - 1
    found = [
        plan
        for plan in plans
        if not plan.combinations
        or (plan.checkpoints == (last,) and all(row.kind == "copy" for row in plan.combinations))
    ]
    if wide or len(found) in (0, len(plans)):
        return []
    return [f"copied from the last checkpoint, not predicted: {_count(found, plans)}: {_named(found)}"]


def _count(some: Sequence[TensorPlan], plans: Sequence[TensorPlan]) -> str:
    size = sum(plan.elements * plan.itemsize for plan in some)
    share = size / max(1, sum(plan.elements * plan.itemsize for plan in plans))
    return f"{len(some):,} of {len(plans):,} tensors, {size:,} bytes ({share:.1%})"


def _named(plans: Sequence[TensorPlan]) -> str:
    return ", ".join(plan.name for plan in plans[:LISTED_NAMES]) + (" …" if len(plans) > LISTED_NAMES else "")
