"""What a merge will do, from headers and coefficients alone: no byte of a tensor is read here.

The output has the last checkpoint's files with its tensors in offset order. Each shard is cut into jobs: a
job is a run of consecutive output bytes that one worker reads, combines and hands to the sink. Small tensors
share a job, a large one spans many, so reads are long whatever the tensors' sizes, and memory does not depend
on them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hubextrap.engine.comparison import FLOATS, compare
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.engine.facts import copied, dtype_notes, kept_wide, narrowed
from hubextrap.engine.jobs import GRAIN, Job, cut_jobs, job_minimum
from hubextrap.errors import CheckpointMismatch, MethodError, OutputError, RecipeError
from hubextrap.foreign_text import own_lines
from hubextrap.tensors.headers import DTYPES, build_header
from hubextrap.tensors.layout import distinct_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.comparison import Entry
    from hubextrap.tensors.layout import CheckpointLayout, TensorInfo

NO_LIMIT = 2**62
LOCAL_READ_SIZE = 2 * MiB
"""Bytes of one checkpoint that a job reads from a disk: a job should stay in the processor's caches."""
REMOTE_READ_SIZE = 8 * MiB
"""The same over a network, where a request costs a round trip."""
REMOTE_READERS = 8
"""Ranges of a job that are requested at the same time; the sources bound the requests in flight."""
BASELINE = 300 * MiB
"""What the process takes without buffers, counted into ``memory``: python, a CPU build of torch and the Hub
client are 230 MiB (measured with torch 2.13; `tensors.devices.CUDA_LIBRARIES` for others); the rest is for
headers."""
HELD_IN_BASELINE = 40 * MiB
"""How much of ``BASELINE`` is for headers and the plan; what a larger model's take comes on top."""
HELD_INFO = 800
"""Bytes of one tensor of one header, its place in tables by name included; equal headers count once."""
HELD_TENSOR, HELD_CHECKPOINT = 2500, 100_000
HELD_INPUT = 16
"""Bytes of a tensor's input in the plan, a reference or two."""
HELD_COEFFICIENT = 500
"""Bytes of a coefficient that follows from the weights: table, plan, provenance and its JSON."""
WRITE_MEMORY = 8 * MiB
"""A target's blocks on their way to the disk, of the shard being made and of the one being finished."""
BLOCK = 2**18
"""Elements that the kernels combine at once: long enough that calling torch costs little."""
LISTED_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Combination:
    """How one target's tensor is made: Σ weights_i · inputs[indices_i], in the order and form of mergekit.

    ``copy``: one coefficient of exactly 1. ``line``: two coefficients that sum to 1, as
    base + weights[1]·(last − base), which leaves a weight that did not move as it was (mergekit's
    task_arithmetic). ``sum``: anything else (mergekit's linear with normalize: false).
    """

    kind: Literal["copy", "line", "sum"]
    indices: tuple[int, ...]
    """Positions in ``TensorPlan.inputs``, in step order."""
    weights: tuple[float, ...]
    """float64; the kernel rounds each once to the accumulator's dtype."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    checkpoints: tuple[int, ...]
    """Which checkpoints it is made of: those with a coefficient other than 0 for some target."""
    inputs: tuple[TensorInfo, ...]
    """Where they keep it."""
    twins: tuple[tuple[int, TensorInfo], ...]
    """Tied copies: (position in ``inputs``, copy), which have to hold the same bytes."""
    combinations: tuple[Combination, ...]
    """One a target; empty for a tensor that is copied and has to be the same in all ``inputs``."""

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
        """Bytes of all checkpoints together that go into it."""
        return sum(
            info.nbytes for plan in self.tensors for info in (*plan.inputs, *(twin for _, twin in plan.twins))
        )


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Everything that is known before the first byte moves."""

    steps: tuple[int, ...]
    names: tuple[str, ...]
    """What messages call the checkpoints."""
    layouts: tuple[CheckpointLayout, ...]
    """What lies where in them."""
    targets: int
    """Outputs that are made in one pass."""
    shards: tuple[ShardPlan, ...]
    index_file: str | None
    index: bytes
    """Content of ``index_file``; the caller writes it beside the shards."""
    total_bytes_read: int
    total_bytes_written: int
    """Of all targets together."""
    peak_memory: int
    """Estimate of the process's peak resident memory, bytes."""
    least_memory: int
    """The smallest ``memory`` that it can be planned with."""
    workers: int
    job_bytes: int
    """Size of a worker's buffer, which holds the inputs and the outputs of a job."""
    accumulator_itemsize: int
    """Bytes of the widest sum: 8 where an output is F64, else 4."""
    same_layout: bool
    """Whether the output's files look like the last checkpoint's, so that it could come out identical."""
    notes: tuple[str, ...]
    """Facts about the inputs and what is done with them."""
    caveats: tuple[str, ...]
    """What whoever uses the output should know too: what was not predicted, what is stored otherwise."""

    def jobs(self, shard: ShardPlan) -> Iterator[Job]:
        """The jobs of one shard in offset order; at least one."""
        return cut_jobs(shard, self.targets, self.job_bytes)


def plan_merge(
    steps: Sequence[int],
    layouts: Sequence[CheckpointLayout],
    coefficients_for: Callable[[str], NDArray[np.float64]],
    *,
    out_dtype: str | None = None,
    tied: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = DEFAULT_WORKERS,
    read_size: int = LOCAL_READ_SIZE,
    grain: int = GRAIN,
    reserve: int = 0,
    write_memory: int = WRITE_MEMORY,
    piece_bytes: int = 0,
    other_pass: int = 0,
) -> MergePlan:
    """Plan the outputs of T targets from K checkpoints.

    A checkpoint with coefficient 0 is not read, so a NaN in it does not spread (0·NaN would be NaN).

    Args:
        steps: the K checkpoints' steps, in order.
        layouts: their layouts.
        coefficients_for: tensor name → float64 (T, K).
        out_dtype: torch's name (``bfloat16``) for the float tensors, but those that the last checkpoint keeps
            wider than most of it: there they stay as they are. None keeps the last checkpoint's dtypes.
        tied: the last checkpoint's tie_word_embeddings.
        memory: bytes that the process may take, python and torch included.
        workers: threads, each with a buffer of its own.
        read_size: bytes to read from a checkpoint at once, if memory allows.
        grain: tensors are cut at multiples of so many elements.
        reserve: bytes of ``memory`` that the caller needs for something else.
        write_memory: bytes that writing takes beside the buffers, a target.
        piece_bytes: bytes that a piece of a job takes beside the buffers.
        other_pass: bytes of ``memory`` that the process needs at another time, before or after.

    Raises:
        CheckpointMismatch: names, shapes, dtypes or tying differ; all findings in one message.
        MethodError: coefficients that are not finite, or all 0.
        RecipeError: an out_dtype that is none.
        OutputError: memory is too small; the message says how much is needed.
    """
    entries, problems, notes = compare(steps, layouts, tied=tied)
    dtype = _output_dtype(out_dtype)
    dtype_of = _dtypes(dtype, layouts[-1])
    plans: dict[str, TensorPlan] = {}
    forms: dict[int, _Form] = {}
    targets = 1
    for entry in entries:
        coefficients = coefficients_for(entry.name)
        targets = len(coefficients)
        plans[entry.name] = _tensor_plan(entry, coefficients, dtype_of, forms)
    problems += [
        f"{plan.name} is {plan.dtype}, which cannot be combined; give it the method persistence by a rule"
        for plan in plans.values()
        if not plan.combinations and len(plan.inputs) > 1 and plan.dtype[0] not in "IUB"
    ]
    _refuse(problems)

    last = layouts[-1]
    shards = []
    for shard in last.shards:
        tensors = tuple(plans[info.name] for info in shard.tensors if info.name in plans)
        if tensors:
            header = build_header(
                [(plan.name, plan.dtype, plan.shape) for plan in tensors], {"format": "pt"} | shard.metadata
            )
            size = len(header) + sum(plan.elements * plan.itemsize for plan in tensors)
            shards.append(ShardPlan(shard.file, header, size, tensors))
    every = [plan for shard in shards for plan in shard.tensors]
    itemsize = 8 if any(plan.dtype == "F64" for plan in every) else 4
    # what a worker's kernels need beside its buffer: one input, one difference, a sum a target
    fixed = BASELINE + reserve + workers * BLOCK * (targets + 2) * itemsize + targets * write_memory
    fixed += _held(layouts, len(every), len(forms) * targets)
    least = job_minimum(every, targets, grain, piece_bytes)
    streams = max((len(plan.inputs) + len(plan.twins) for plan in every), default=0)
    least_memory = max(fixed + workers * least, other_pass)
    if memory < least_memory:
        raise OutputError(
            f"memory: {memory / MiB:.0f} MiB are not enough for {streams} checkpoints, {targets} "
            f"target{'s' * (targets > 1)} and {workers} worker{'s' * (workers > 1)}; give at least "
            f"{-(-least_memory // MiB)} MiB"
        )
    room = (memory - fixed) // workers
    job_bytes = max(least, min(room, read_size * (streams + targets)))
    return MergePlan(
        steps=tuple(steps),
        names=tuple(layout.name for layout in layouts),
        layouts=tuple(layouts),
        targets=targets,
        shards=tuple(shards),
        index_file=last.index_file,
        index=_index(shards) if last.index_file else b"",
        total_bytes_read=sum(shard.bytes_read for shard in shards),
        total_bytes_written=targets * sum(shard.size for shard in shards),
        peak_memory=max(fixed + workers * job_bytes, other_pass),
        least_memory=least_memory,
        workers=workers,
        job_bytes=job_bytes,
        accumulator_itemsize=itemsize,
        same_layout=len(every) == len(last.tensors)
        and all(p.dtype == last.tensors[p.name].dtype for p in every),
        notes=(*notes, *dtype_notes(steps, layouts), *narrowed(out_dtype, every, last)),
        caveats=(*kept_wide(dtype, every), *copied(every, len(layouts) - 1)),
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


@dataclass(frozen=True, slots=True)
class _Form:
    """How tensors of the same coefficients are made; they share it."""

    coefficients: NDArray[np.float64]
    """Held, so that no other array gets its id."""
    checkpoints: tuple[int, ...]
    combinations: tuple[Combination, ...]


def _tensor_plan(
    entry: Entry,
    coefficients: NDArray[np.float64],
    dtype_of: Callable[[str], str],
    forms: dict[int, _Form],
) -> TensorPlan:
    last = len(entry.inputs) - 1
    reference = entry.inputs[last]
    combined = reference.dtype in FLOATS
    form = forms.get(id(coefficients)) if combined else None
    if form is None:
        form = _form(entry, coefficients, combined)
        if combined:
            forms[id(coefficients)] = form
    checkpoints = form.checkpoints
    return TensorPlan(
        name=entry.name,
        dtype=dtype_of(reference.dtype) if combined else reference.dtype,
        shape=reference.shape,
        elements=reference.nbytes // DTYPES[reference.dtype].itemsize,
        checkpoints=checkpoints,
        inputs=entry.inputs
        if len(checkpoints) == len(entry.inputs)
        else tuple(entry.inputs[k] for k in checkpoints),
        twins=tuple((i, twin) for i, k in enumerate(checkpoints) if (twin := entry.twins[k])),
        combinations=form.combinations,
    )


def _form(entry: Entry, coefficients: NDArray[np.float64], combined: bool) -> _Form:
    if coefficients.ndim != 2 or coefficients.shape[1] != len(entry.inputs):
        raise ValueError(
            f"{entry.name}: coefficients of shape {coefficients.shape} for {len(entry.inputs)} checkpoints"
        )
    if not np.isfinite(coefficients).all():
        raise MethodError(
            f"{entry.name}: its coefficients {coefficients.tolist()} are not finite; check steps and target"
        )
    if not coefficients.any(axis=1).all():
        raise MethodError(f"{entry.name}: its coefficients are all 0; check the method that its rule names")
    used = set(np.flatnonzero(coefficients.any(axis=0)).tolist())
    checkpoints = tuple(sorted(used if combined else used | {len(entry.inputs) - 1}))
    combinations = tuple(combination(row, checkpoints) for row in coefficients) if combined else ()
    return _Form(coefficients, checkpoints, combinations)


def _output_dtype(out_dtype: str | None) -> str | None:
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
    narrower: a few large tensors may be the wide ones.
    """
    if out_dtype is None:
        return lambda stored: stored
    size, count = Counter[str](), Counter[str]()
    for info in last.tensors.values():
        if info.dtype in FLOATS:
            size[info.dtype] += info.nbytes
            count[info.dtype] += 1
    commonest = [dtype for counted in (size, count) for dtype, _ in counted.most_common(1)]
    most = min((DTYPES[dtype].itemsize for dtype in commonest), default=DTYPES[out_dtype].itemsize)

    def dtype_of(stored: str) -> str:
        width = DTYPES[stored].itemsize
        return stored if width > most and width > DTYPES[out_dtype].itemsize else out_dtype

    return dtype_of


def _refuse(problems: Sequence[str]) -> None:
    if not problems:
        return
    more = len(problems) - LISTED_PROBLEMS
    raise CheckpointMismatch(
        own_lines(
            f"the checkpoints do not fit together, {len(problems)} finding{'s' * (len(problems) > 1)}:",
            *(f"  {problem}" for problem in problems[:LISTED_PROBLEMS]),
            *([f"  … and {more} more"] if more > 0 else []),
            "leave out the checkpoints that differ (trajectory.steps), or choose ones that one run saved",
        )
    )


def _held(layouts: Sequence[CheckpointLayout], tensors: int, rows: int) -> int:
    """Bytes of headers, tables and plan beyond those in ``BASELINE``, from what they took when measured.

    Args:
        rows: different rows of coefficients: one a target, or one a tensor and target.
    """
    count = len(layouts)
    held = distinct_tensors(layouts) * HELD_INFO + count * HELD_CHECKPOINT
    held += tensors * (HELD_TENSOR + count * HELD_INPUT) + rows * count * HELD_COEFFICIENT
    return max(0, held - HELD_IN_BASELINE)


def _index(shards: Sequence[ShardPlan]) -> bytes:
    """The index JSON as transformers writes it."""
    weight_map = {plan.name: shard.file for shard in shards for plan in shard.tensors}
    total = sum(plan.elements * plan.itemsize for shard in shards for plan in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
