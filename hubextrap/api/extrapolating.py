"""A jump by the streaming engine: local snapshots and the coefficients that a rule gave them, to a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.adapters.config import CONFIG_FILE
from hubextrap.adapters.predicted import PredictedSource
from hubextrap.adapters.recompress import MOST_LOST
from hubextrap.api.adapted import adapter_inputs, published_base
from hubextrap.api.companions import companions_of, input_files
from hubextrap.api.fingerprint import inputs_fingerprint
from hubextrap.api.making import make_in
from hubextrap.api.output import check_output, fill_in, output_sizes
from hubextrap.api.preparing import BESIDE_IN_BASELINE, Beside, plan_outputs
from hubextrap.api.staging import staged
from hubextrap.digests import sha256_of_json
from hubextrap.engine.budget import Budget
from hubextrap.engine.kernels import check_device
from hubextrap.engine.plan import plan_merge
from hubextrap.hub import PROVENANCE_FILE, build_provenance
from hubextrap.hub.provenance import AdapterRecord
from hubextrap.opening import ReadingOptions, Run
from hubextrap.regrounding.ending import GramOfSnapshots
from hubextrap.trajectory import Trajectory
from hubextrap.trajectory.checkpoint import ADAPTER, BASE, MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun
    from hubextrap.api.preparing import MergeOptions
    from hubextrap.engine import MergePlan
    from hubextrap.hub.provenance import InputFile
    from hubextrap.progress import Progress
    from hubextrap.recipe import RegroundRecipe
    from hubextrap.regrounding import Decision
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint

ALL = "*"
"""Names the coefficients of every tensor that has none of its own."""


def snapshots_run(checkpoints: Sequence[Checkpoint], reading: ReadingOptions, progress: Progress) -> Run:
    """Local checkpoints in step order as a run, to be opened; a model ahead of adapters is their base."""
    base = None
    if any(one.kind == ADAPTER for one in checkpoints):
        base = checkpoints[0] if checkpoints[0].kind == MODEL else None
        checkpoints = [replace(one, kind=BASE) if one is base else one for one in checkpoints]
    return Run(Trajectory(tuple(checkpoints), "snapshots", base_model=base), reading, progress=progress)


def scan_folders(
    checkpoints: Sequence[Checkpoint], reading: ReadingOptions, progress: Progress
) -> GramOfSnapshots:
    """The inner products of local checkpoints, each byte read once.

    Raises:
        CheckpointError: they do not fit together, or one is not finite.
        SourceError: they cannot be read. OutputError: the memory setting is too small.
    """
    with snapshots_run(checkpoints, reading, progress) as run:
        table = run.scan_weights().gram_table
        dtypes = frozenset(info.dtype for layout in run.layouts for info in layout.tensors.values())
    return GramOfSnapshots(table.tensors, table.gram, dtypes)


def extrapolate(
    checkpoints: Sequence[Checkpoint],
    decision: Decision,
    target_step: int,
    recipe: RegroundRecipe,
    out: Path,
    settings: MergeOptions,
    progress: Progress,
) -> None:
    """Write Σ c_k·W_k, accumulated in fp32 and rounded once to each tensor's dtype in the last checkpoint.

    It appears whole, by a rename; a run that was stopped goes on at the shard where it was. Configuration and
    tokenizer are the last checkpoint's.

    Args:
        checkpoints: K local ones in step order, as the decision's ``snapshot_steps`` has them.

    Raises:
        CheckpointError: they do not fit together, or the sum is not finite in the dtype.
        OutputError: ``out`` cannot be written.
    """
    coefficients = decision.coefficients
    assert coefficients is not None
    describe = partial(
        build_provenance,
        merge_method=f"reground {decision.rule}",
        parameters={"window": recipe.reground.window, "jump": decision.n_used, **_clock_of(decision)},
        target_step=target_step,
        dtype="float32",
        out_dtype=None,
        recipe=recipe.text,
        expected_relative_error=decision.expected_relative_error,
    )
    rules = [(name, decision.rule, row) for name, row in coefficients.items()]
    with snapshots_run(checkpoints, settings.reading, progress) as run:
        if run.adapters is None:
            planned = _planned(run, coefficients, settings)
        else:
            planned = _planned_adapter(run, run.adapters, coefficients, settings, target_step)
        plan, beside = planned.plan, planned.beside
        describe = partial(describe, input_files=planned.read, adapter=planned.record)
        made = companions_of(run, plan, beside, describe, rules, plan.caveats)
        check_device(settings.device)
        check_output(out, {"": output_sizes(plan, made.files)})
        fingerprint = inputs_fingerprint(run, plan) | {"the coefficients": sha256_of_json(coefficients)}
        with staged(out, [""], fingerprint, progress) as staging:
            (output,) = make_in(staging, [made.files], plan, planned.sources, run, settings)
            whole = made.with_shards(output.shards)
            fill_in(staging.folders[0] / PROVENANCE_FILE, whole.files[PROVENANCE_FILE])


def _clock_of(decision: Decision) -> dict[str, str]:
    """What a provenance says of it: nothing, where it was steps."""
    return {} if decision.clock == "steps" else {"clock": decision.clock}


@dataclass(frozen=True, slots=True)
class _Planned:
    """What is to be written, and from what."""

    plan: MergePlan
    sources: Sequence[Source]
    """What the plan reads."""
    beside: Beside
    read: list[list[InputFile]]
    """Of each checkpoint."""
    record: AdapterRecord | None = None


def _planned(run: Run, coefficients: Mapping[str, Sequence[float]], settings: MergeOptions) -> _Planned:
    plans = []

    def coefficients_for(tensor: str) -> NDArray[np.float64]:
        return _row(coefficients, len(run.steps), tensor)[None]

    def hold(count: int) -> None:
        plans.append(plan_outputs(run, run.models, coefficients_for, _budget(run, settings, count)))

    # a snapshot's card is its trainer's
    beside = replace(Beside.read(run.sources[-1], None, hold), card=None)
    (plan,) = plans
    return _Planned(plan, run.sources, beside, input_files(plan, run.sources))


def _planned_adapter(
    run: Run,
    adapters: AdapterRun,
    coefficients: Mapping[str, Sequence[float]],
    settings: MergeOptions,
    target_step: int,
) -> _Planned:
    """Of an adapter that its trainer goes on with: of the last one's ranks, and with factors like its own."""
    rows = partial(_row, coefficients, len(run.steps))
    source = PredictedSource(adapters, rows, adapters.largest_rank, step=target_step, continues=True)
    plans = []

    def hold(count: int) -> None:
        budget = _budget(run, settings, count + source.memory)
        plans.append(plan_merge((target_step,), [source.layout], lambda name: np.ones((1, 1)), budget=budget))

    beside = Beside.read(run.last_source, None, hold, whole_model=False)
    beside = replace(beside, card=None, files={**beside.files, CONFIG_FILE: source.config})
    lost = dict(source.lost)
    for name in sorted(name for name, share in lost.items() if share > MOST_LOST):
        run.warn(f"step {target_step}: the cut to the rank of {name} loses {lost[name]:.2%} of its energy")
    record = AdapterRecord(
        output="adapter",
        rank=source.rank,
        lost=lost if any(lost.values()) else None,
        base_name=published_base(run, adapters),
    )
    (plan,) = plans
    return _Planned(plan, (source,), beside, adapter_inputs(run, adapters), record)


def _row(coefficients: Mapping[str, Sequence[float]], count: int, tensor: str) -> NDArray[np.float64]:
    """(K,); one that no rule saw, as it has no floats, is the last checkpoint's."""
    row = coefficients.get(tensor, coefficients.get(ALL))
    return np.eye(count)[-1] if row is None else np.asarray(row, dtype=np.float64)


def _budget(run: Run, settings: MergeOptions, held: int) -> Budget:
    """What the pass may take beside so many bytes that are held."""
    reserve = max(0, held - BESIDE_IN_BASELINE)
    return Budget(settings.memory, settings.workers, run.remote, reserve=reserve)
