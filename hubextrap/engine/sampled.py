"""The scan that follows from sampled weights; nothing is read here.

Gram matrices are sums over the weights drawn, scaled to the whole tensor. As in `statistics.elements`,
differences between one checkpoint and the next are taken in float32 and their products summed in float64, so
a backtest does not lose digits to cancellation. No BLAS: how it adds up depends on the processor, on its
threads and on how many checkpoints there are. Here each inner product is the same pairwise sum whatever else
is computed, so the scan of a run that has grown by a checkpoint holds the figures of the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.compiling import announced
from hubextrap.engine.kernels import count_non_finite, widen
from hubextrap.engine.scan_plan import scanned_checkpoints
from hubextrap.engine.stream import too_far
from hubextrap.errors import NonFinite
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans.places import places_of
from hubextrap.scans.scan import EXAMPLES, Scan
from hubextrap.statistics.linearity import BINS, count_linearity, random_walk, spread_counts
from hubextrap.statistics.table import GROUPS, GramSample, GramTable
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.scans.places import Places
    from hubextrap.scans.sampled import SampledWeights
    from hubextrap.trajectory.checkpoint import Trajectory

LARGEST = float(np.finfo(np.float32).max)
"""Beyond it, squares of moves are refused, as where all weights are read."""


def scan_of_sample(
    trajectory: Trajectory,
    plan: ScanPlan,
    weights: SampledWeights,
    *,
    pins: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Scan:
    """What sampled weights of K checkpoints say.

    Args:
        plan: that they were sampled by.
        pins: what stands for each checkpoint's bytes; by default its commit or folder.

    Raises:
        NonFinite: a checkpoint holds NaN or infinity, or differs so much that squares exceed float32.
    """
    n, k = len(plan.tensors), len(plan.steps)
    elements = np.array([tensor.elements for tensor in plan.tensors], dtype=np.int64)
    ends = [np.cumsum([0, *weights.sizes(number, elements.tolist())]).tolist() for number in range(k)]
    blocks = np.zeros((n, GROUPS, k, k))
    block_counts = np.zeros((n, GROUPS, BINS + 3), np.int64)
    counts = np.zeros((n, BINS + 3), np.int64)
    places = np.full((n, EXAMPLES), -1, np.int64)
    examples = np.full((n, EXAMPLES, k), np.nan, np.float32)
    with announced(progress or SilentProgress()):
        for row, tensor in enumerate(plan.tensors):
            if not tensor.elements:
                continue
            stored = [one[end[row] : end[row + 1]] for one, end in zip(weights.stored, ends, strict=True)]
            drawn = places_of(tensor.name, tensor.elements, weights.size)
            values = _values(trajectory, tensor.name, stored, [names[row] for names in weights.dtypes])
            with np.errstate(over="ignore", invalid="ignore"):  # what came of it is looked at
                blocks[row] = sample_blocks(values, drawn)
            if not (np.isfinite(blocks[row]).all() and blocks[row].max() <= LARGEST):
                raise too_far(tensor.name)
            for group, part in enumerate(np.split(values, np.cumsum(drawn.groups)[:-1], axis=1)):
                block_counts[row, group] = count_linearity(plan.steps, part.T)
            counts[row] = spread_counts(block_counts[row].sum(axis=0), tensor.elements)
            first = drawn.in_tensor()[:EXAMPLES]
            places[row, : len(first)] = first
            examples[row, : len(first)] = values[:, : len(first)].T
    sample = GramSample(blocks, np.minimum(elements, weights.size), weights.size)
    names = tuple(tensor.name for tensor in plan.tensors)
    return Scan(
        gram_table=GramTable(plan.steps, names, elements, blocks.sum(axis=1), sample=sample),
        series=trajectory.series,
        checkpoints=scanned_checkpoints(trajectory, plan.layouts, pins, sampled=True),
        counts=counts,
        random_walk=random_walk(plan.steps),
        example_places=places,
        example_values=examples,
        sampled=weights.size,
        weights=weights,
        block_counts=block_counts,
    )


def _values(
    trajectory: Trajectory, tensor: str, stored: Sequence[NDArray[np.uint8]], dtypes: Sequence[str]
) -> NDArray[np.float32]:
    """(K, n): the weights of one tensor; F64 is rounded.

    Raises:
        NonFinite: names the tensor and the step.
    """
    rows = []
    for checkpoint, data, dtype in zip(trajectory.checkpoints, stored, dtypes, strict=True):
        if count_non_finite(data, dtype):
            raise NonFinite(
                f"{tensor}: step {checkpoint.step} ({checkpoint.name}) holds NaN or infinite weights; leave "
                "that checkpoint out",
                tensor=tensor,
                step=checkpoint.step,
            )
        rows.append(np.empty(len(data) // DTYPES[dtype].itemsize, np.float32))
        widen(data, dtype, rows[-1])
    return np.stack(rows)


def sample_blocks(values: NDArray[np.float32], drawn: Places) -> NDArray[np.float64]:
    """(GROUPS, K, K): inner products of the moves from the first checkpoint, group by group, scaled to the
    whole tensor: together they are its Gram matrix.

    Args:
        values: (K, n): what was drawn, in the order of the places.
    """
    count = len(values)
    moves = np.diff(values, axis=0).astype(np.float64)
    products = np.zeros((GROUPS, count, count))
    for group, part in enumerate(np.split(moves, np.cumsum(drawn.groups)[:-1], axis=1)):
        for k in range(count - 1):
            # sums along rows of a fresh array: pairwise, and none knows of the others
            products[group, k + 1, 1 : k + 2] = (part[: k + 1] * part[k]).sum(axis=1)
    products += np.tril(products, -1).transpose(0, 2, 1)
    # deltas are sums of moves; one half is taken for both, as the two are rounded otherwise
    grams = np.tril(products.cumsum(axis=1).cumsum(axis=2))
    grams += np.tril(grams, -1).transpose(0, 2, 1)
    return np.asarray(grams * (drawn.elements / len(drawn.inside)), dtype=np.float64)
