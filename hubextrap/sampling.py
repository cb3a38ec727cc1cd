"""The sample of a run: of how many weights, which checkpoints are known already, and what is read."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from hubextrap.engine.budget import NO_LIMIT, Budget
from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.sampling import known_weights, sample_weights
from hubextrap.engine.scan_plan import plan_scan
from hubextrap.errors import CheckpointMismatch
from hubextrap.sample_sizes import DEFAULT_SAMPLE
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo, TensorInfo
from hubextrap.trajectory.weights import weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.progress import Progress
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.scans import Scan
    from hubextrap.tensors import Combinable
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint, Trajectory

LARGE = 10**9
"""Bytes of all checkpoints' weights on the Hub, above which nobody reads them all without being asked."""


def sample_size(
    choice: SampleChoice, trajectory: Trajectory, source_at: Callable[[int], Source]
) -> int | None:
    """How many weights of each tensor are read; None: all.

    Args:
        choice: ``auto`` takes a sample of whole models on the Hub that are large.
        source_at: a checkpoint's source, whose listing is asked where its size is not known yet.
    """
    if choice != "auto":
        return None if choice == "exact" else choice
    total = 0
    for k, checkpoint in enumerate(trajectory.checkpoints):
        if checkpoint.repo is not None and total <= LARGE and not trajectory.of_adapters:
            total += checkpoint.size or _size(source_at(k))
    return DEFAULT_SAMPLE if total > LARGE else None


def scan_of_weights(
    trajectory: Trajectory,
    pins: Sequence[str],
    size: int,
    known: Scan | None,
    models_at: Callable[[Sequence[int]], Combinable],
    tied: Callable[[], bool],
    *,
    budget: Budget,
    progress: Progress,
) -> Scan:
    """A scan of ``size`` weights of each tensor; arguments as for `plan_sample` and `sample_weights`.

    Raises:
        HubExtrapError: as they do.
    """
    from hubextrap.engine.sampled import scan_of_sample  # imports numba

    sources: dict[int, Source] = {}

    def layouts_at(numbers: Sequence[int]) -> list[CheckpointLayout]:
        found = models_at(numbers)
        sources.update(zip(numbers, found.sources, strict=True))
        return found.layouts

    plan, there = plan_sample(trajectory.checkpoints, pins, size, known, layouts_at, tied)
    weights = sample_weights(
        plan,
        {k: source for k, source in sources.items() if k not in there},
        size,
        known=there,
        budget=budget,
        progress=progress,
    )
    return scan_of_sample(trajectory, plan, weights, pins=pins, progress=progress)


def plan_sample(
    checkpoints: Sequence[Checkpoint],
    pins: Sequence[str],
    size: int,
    known: Scan | None,
    layouts_at: Callable[[Sequence[int]], Sequence[CheckpointLayout]],
    tied: Callable[[], bool],
) -> tuple[ScanPlan, dict[int, NDArray[np.uint8]]]:
    """What is sampled, and the weights that a scan of a sample holds already, by the checkpoints' numbers.

    Nothing is read of checkpoints that it holds, their headers included.

    Args:
        pins: what stands for each checkpoint's bytes.
        layouts_at: of the checkpoints with these numbers.
        tied: the last checkpoint's tie_word_embeddings.

    Raises:
        StepError: fewer than two checkpoints.
        CheckpointMismatch: names, shapes or dtypes differ.
        HubExtrapError: headers could not be read.
    """
    steps = tuple(one.step for one in checkpoints)
    same: set[int] = set()
    if known is not None and known.weights is not None and known.weights.size == size:
        pinned = enumerate(zip(checkpoints, pins, strict=True))
        same = {k for k, (one, pin) in pinned if known.holds(one.step, pin, one.digest)}
    if known is not None and same:
        with suppress(CheckpointMismatch):  # what a scan remembers is not all, and says less of what differs
            layouts, is_new = _layouts(steps, same, known, layouts_at)
            plan = plan_scan(steps, layouts, tied=is_new and tied(), budget=Budget(NO_LIMIT))
            found = known_weights(plan, known, size, same)
            # places follow from a tensor's name, so copies of another name were never compared
            copied = {one.checkpoints[at] for one in plan.tensors for at, _ in one.twins}
            if same <= found.keys() and not same & copied:
                return plan, found
    layouts, _ = _layouts(steps, (), None, layouts_at)
    return plan_scan(steps, layouts, tied=tied(), budget=Budget(NO_LIMIT)), {}


def _layouts(
    steps: Sequence[int],
    kept: Collection[int],
    known: Scan | None,
    layouts_at: Callable[[Sequence[int]], Sequence[CheckpointLayout]],
) -> tuple[list[CheckpointLayout], bool]:
    """Those of all checkpoints, from a scan where it knows them; and whether any was read."""
    numbers = [k for k in range(len(steps)) if k not in kept]
    last = len(steps) - 1
    # the scan has the tensors in the order of its own last checkpoint
    if last in kept and known is not None and known.steps[-1] != steps[-1]:
        numbers.append(last)
    read = dict(zip(numbers, layouts_at(numbers) if numbers else (), strict=True))
    like = read[numbers[-1]].tensors if numbers else {}
    tables: dict[tuple[str, ...], ShardInfo] = {}
    layouts = []
    for k, step in enumerate(steps):
        layouts.append(read[k] if k in read or known is None else _remembered(known, step, like, tables))
    return layouts, bool(read)


def _remembered(
    known: Scan, step: int, like: Mapping[str, TensorInfo], tables: dict[tuple[str, ...], ShardInfo]
) -> CheckpointLayout:
    """The layout that a scan of a sample remembers: the tensors' names, sizes and dtypes, but no places.

    Args:
        like: tensors of a checkpoint that was read, whose shapes are taken where the sizes fit; so are its
            integers, which a scan leaves out.
        tables: of other checkpoints, which share what is alike.
    """
    assert known.weights is not None
    at = known.steps.index(step)
    dtypes = known.weights.dtypes[at]
    if dtypes not in tables:
        rows = zip(known.tensors, known.gram_table.elements.tolist(), dtypes, strict=True)
        floats = (
            TensorInfo(name, dtype, _shape(like, name, count), "", 0, count * DTYPES[dtype].itemsize)
            for name, count, dtype in rows
        )
        others = (info for info in like.values() if info.dtype not in FLOATS)
        tables[dtypes] = ShardInfo("", 0, (*floats, *others))
    return CheckpointLayout(known.checkpoints[at].name, (tables[dtypes],), None)


def _shape(like: Mapping[str, TensorInfo], name: str, elements: int) -> tuple[int, ...]:
    shape = like[name].shape if name in like else (elements,)
    return shape if math.prod(shape) == elements else (elements,)


def _size(source: Source) -> int:
    found = weights_of((file, info.size) for file, info in source.files().items())
    return 0 if found is None else found.size
