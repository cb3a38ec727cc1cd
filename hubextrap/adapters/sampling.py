"""A sample of a run of adapters: elements of each product s·B·A, at the places at which a model is sampled.

Tensors that were trained whole are sampled like those of full checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.adapters.gram import elements_at
from hubextrap.adapters.scanning import AT_ONCE, plan_of_whole
from hubextrap.engine.budget import NO_LIMIT, Budget
from hubextrap.engine.sampled import scan_of_sample
from hubextrap.engine.sampling import check_memory, sample_weights
from hubextrap.engine.scan_plan import plan_scan
from hubextrap.engine.threads import in_threads
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans.places import places_of
from hubextrap.scans.sampled import SampledWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.scans.scan import Scan
    from hubextrap.trajectory.checkpoint import Trajectory


def sample_adapters(
    run: AdapterRun,
    trajectory: Trajectory,
    size: int,
    *,
    pins: Sequence[str] | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Scan:
    """What ``size`` elements of each product say. Adapters are read whole, as they are small.

    Args:
        trajectory: that of the run.
        pins: what stands for each checkpoint's bytes; by default its commit or folder.

    Raises:
        NonFinite: a checkpoint holds NaN or infinity, or has moved so far that squares exceed float32.
        OutputError: memory is too small.
        StepError: fewer than two checkpoints.
        HubExtrapError: factors, or the base where it is needed, could not be read.
    """
    progress, budget = progress or SilentProgress(), budget or Budget()
    workers = budget.workers
    plan = plan_scan(run.steps, run.layouts, budget=Budget(NO_LIMIT, workers))
    # a thread's factors, which are read as float32 at least, and the rows and columns of some elements
    pairs = (pair for one in run.adapters if one is not None for pair in one.factors.values())
    factors = 4 * max((pair.a.nbytes + pair.b.nbytes for pair in pairs), default=0)
    beside = workers * (factors + 2 * 8 * AT_ONCE * run.largest_rank)
    check_memory(plan, size, budget, workers, beside)
    found = _whole(run, size, budget, progress)
    made = [tensor for tensor in plan.tensors if tensor.name in run.last.factors]
    with progress.stage("sample", len(made), "tensors") as stage:
        one = partial(_elements, run, size)
        for tensor, values in zip(made, in_threads(workers, one, made), strict=True):
            found[tensor.name] = [("F32", row.view(np.uint8)) for row in values]
            stage.advance(1)
    stored, dtypes = [], []
    for k in range(len(run.steps)):
        parts = [found[tensor.name][k] for tensor in plan.tensors]
        dtypes.append(tuple(dtype for dtype, _ in parts))
        stored.append(np.concatenate([data for _, data in parts]))
    weights = SampledWeights(size, tuple(dtypes), tuple(stored))
    scan = scan_of_sample(trajectory, plan, weights, pins=pins, progress=progress)
    products = np.array([name in run.last.factors for name in scan.tensors])
    examples = scan.example_values.copy()
    examples[products] -= examples[products][..., :1]
    return replace(scan, example_values=examples)


def _elements(run: AdapterRun, size: int, tensor: TensorInputs) -> NDArray[np.float32]:
    """(K, n): elements of one tensor's products, rounded once; 0 at the base."""
    places = places_of(tensor.name, tensor.elements, size).in_tensor()
    order = np.argsort(places)
    values = np.zeros((len(run.steps), len(places)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # whoever adds them up looks at them
        for k, adapter in enumerate(run.adapters):
            if adapter is None:
                continue
            term = run.term(k, tensor.name)
            for start in range(0, len(order), AT_ONCE):
                some = order[start : start + AT_ONCE]
                values[k, some] = elements_at(term, places[some])
    return values


def _whole(
    run: AdapterRun, size: int, budget: Budget, progress: Progress
) -> dict[str, list[tuple[str, NDArray[np.uint8]]]]:
    """Sampled weights of the tensors that were trained themselves, as stored: by tensor and checkpoint."""
    names = list(run.last.whole)
    if not names:
        return {}
    plan, sources = plan_of_whole(run, names, Budget(NO_LIMIT, budget.workers))
    budget = replace(budget, remote=any(one.repo for one in run.checkpoints))
    weights = sample_weights(plan, dict(enumerate(sources)), size, budget=budget, progress=progress)
    elements = [tensor.elements for tensor in plan.tensors]
    return {
        tensor.name: [
            (weights.dtypes[k][row], weights.of_tensor(k, row, elements)) for k in range(len(run.steps))
        ]
        for row, tensor in enumerate(plan.tensors)
    }
