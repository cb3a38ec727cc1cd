"""A jump by the streaming engine: local snapshots and the coefficients that a rule gave them, to a model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.api.companions import companions_of, input_files
from hubextrap.api.fingerprint import inputs_fingerprint
from hubextrap.api.making import make_in
from hubextrap.api.output import check_output, fill_in, output_sizes
from hubextrap.api.preparing import BESIDE_IN_BASELINE, Beside, plan_outputs
from hubextrap.api.staging import staged
from hubextrap.digests import sha256_of_json
from hubextrap.engine.kernels import check_device
from hubextrap.hub import PROVENANCE_FILE, build_provenance
from hubextrap.opening import ReadingOptions, Run
from hubextrap.regrounding.ending import GramOfSnapshots
from hubextrap.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hubextrap.api.preparing import MergeOptions
    from hubextrap.engine import MergePlan
    from hubextrap.progress import Progress
    from hubextrap.recipe import RegroundRecipe
    from hubextrap.regrounding import Decision
    from hubextrap.trajectory import Checkpoint

ALL = "*"
"""Names the coefficients of every tensor that has none of its own."""


def snapshots_run(checkpoints: Sequence[Checkpoint], reading: ReadingOptions, progress: Progress) -> Run:
    """Local checkpoints in step order as a run, to be opened."""
    return Run(Trajectory(tuple(checkpoints), "snapshots"), reading, progress=progress)


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
        plan, beside = _planned(run, coefficients, settings)
        describe = partial(describe, input_files=input_files(plan, run.sources))
        made = companions_of(run, plan, beside, describe, rules, plan.caveats)
        check_device(settings.device)
        check_output(out, {"": output_sizes(plan, made.files)})
        fingerprint = inputs_fingerprint(run, plan) | {"the coefficients": sha256_of_json(coefficients)}
        with staged(out, [""], fingerprint, progress) as staging:
            (output,) = make_in(staging, [made.files], plan, run, settings)
            whole = made.with_shards(output.shards)
            fill_in(staging.folders[0] / PROVENANCE_FILE, whole.files[PROVENANCE_FILE])


def _clock_of(decision: Decision) -> dict[str, str]:
    """What a provenance says of it: nothing, where it was steps."""
    return {} if decision.clock == "steps" else {"clock": decision.clock}


def _planned(
    run: Run, coefficients: Mapping[str, Sequence[float]], settings: MergeOptions
) -> tuple[MergePlan, Beside]:
    last = np.eye(len(run.steps))[-1:]
    rows = {name: np.array([row]) for name, row in coefficients.items()}
    plans = []

    def coefficients_for(tensor: str) -> NDArray[np.float64]:
        return rows.get(tensor, rows.get(ALL, last))  # no floats, so no rule saw it: it is only copied

    def hold(count: int) -> None:
        reserve = max(0, count - BESIDE_IN_BASELINE)
        plans.append(plan_outputs(run, run.layouts, coefficients_for, settings, reserve=reserve))

    beside = replace(Beside.of(run.sources[-1], None, hold), card=None)  # a snapshot's card is its trainer's
    (plan,) = plans
    return plan, beside
