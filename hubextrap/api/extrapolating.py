"""A jump by the streaming engine: local snapshots and the coefficients that a rule gave them, to a model."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from hubextrap._version import __version__
from hubextrap.api.companions import Beside, companions_of, input_files
from hubextrap.api.fingerprint import header_fingerprint
from hubextrap.api.output import check_output, fill_in, output_sizes, write_files
from hubextrap.api.prepare import BESIDE_IN_BASELINE
from hubextrap.api.staging import staged
from hubextrap.digests import sha256_of_json
from hubextrap.engine import Budget, plan_merge, run_plan
from hubextrap.engine.kernels import check_device
from hubextrap.hub import PROVENANCE_FILE, CoefficientRule, OutputShard, build_provenance
from hubextrap.reground.loop import GramOfSnapshots
from hubextrap.tensors import LocalSink, LocalSource, read_combinable, ties_embeddings
from hubextrap.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hubextrap.api.prepare import Settings
    from hubextrap.hub import Provenance
    from hubextrap.progress import Progress
    from hubextrap.recipe import RegroundRecipe
    from hubextrap.reground import Decision
    from hubextrap.trajectory import Checkpoint

ALL = "*"
"""Names the coefficients of every tensor that has none of its own."""


def scan_folders(
    checkpoints: Sequence[Checkpoint], settings: Settings, progress: Progress
) -> GramOfSnapshots:
    """The inner products of local checkpoints, each byte read once.

    Raises:
        CheckpointError: they do not fit together, or one is not finite.
        SourceError: they cannot be read. OutputError: the memory setting is too small.
    """
    from hubextrap.engine.scan import scan_trajectory  # imports numba
    from hubextrap.engine.scan_plan import plan_scan

    with ExitStack() as stack:
        sources = [stack.enter_context(closing(LocalSource(one.path))) for one in checkpoints]
        layouts = read_combinable(sources, progress)
        trajectory = Trajectory(tuple(checkpoints), "snapshots")
        plan = plan_scan(
            trajectory.steps,
            layouts,
            tied=ties_embeddings(sources[-1]),
            budget=Budget(settings.memory, settings.workers),
        )
        table = scan_trajectory(trajectory, sources, plan, progress=progress).gram_table
    dtypes = frozenset(info.dtype for layout in layouts for info in layout.tensors.values())
    return GramOfSnapshots(table.tensors, table.gram, dtypes)


def extrapolate(
    checkpoints: Sequence[Checkpoint],
    decision: Decision,
    target_step: int,
    out: Path,
    *,
    recipe: RegroundRecipe,
    settings: Settings,
    progress: Progress,
) -> None:
    """Write Σ c_k·W_k, accumulated in fp32 and rounded once to each tensor's dtype in the last checkpoint.

    It appears whole, by a rename; a run that was stopped goes on at the shard where it was. Configuration and
    tokenizer are the last checkpoint's.

    Args:
        checkpoints: K local ones in step order, as ``decision.snapshot_steps`` has them.

    Raises:
        CheckpointError: they do not fit together, or the sum is not finite in the dtype.
        OutputError: ``out`` cannot be written.
    """
    assert decision.coefficients is not None
    coefficients = decision.coefficients
    last = np.eye(len(checkpoints))[-1:]
    rows = {name: np.array([row]) for name, row in coefficients.items()}

    def coefficients_for(tensor: str) -> NDArray[np.float64]:
        return rows.get(tensor, rows.get(ALL, last))  # no floats, so no rule saw it: it is only copied

    with ExitStack() as stack:
        sources = [stack.enter_context(closing(LocalSource(one.path))) for one in checkpoints]
        layouts, plans = read_combinable(sources, progress), []

        def hold(count: int) -> None:
            planned = plan_merge(
                [one.step for one in checkpoints],
                layouts,
                coefficients_for,
                tied=ties_embeddings(sources[-1]),
                budget=Budget(settings.memory, settings.workers, reserve=max(0, count - BESIDE_IN_BASELINE)),
            )
            plans.append(planned)

        beside = replace(Beside.of(sources[-1], None, hold), card=None)  # a snapshot's card is its trainer's
        (plan,) = plans

        def describe(shards: Sequence[OutputShard], files: Mapping[str, bytes]) -> Provenance:
            return build_provenance(
                checkpoints=checkpoints,
                merge_method=f"reground {decision.rule}",
                parameters={"window": recipe.reground.window, "jump": decision.n_used},
                target_step=target_step,
                coefficients=[
                    CoefficientRule(
                        match=name,
                        method=decision.rule,
                        coefficients=dict(zip(decision.snapshot_steps, row, strict=True)),
                    )
                    for name, row in coefficients.items()
                ],
                shards=shards,
                files=files,
                dtype="float32",
                out_dtype=None,
                recipe=recipe.text,
                expected_relative_error=decision.expected_relative_error,
                input_files=input_files(plan, sources),
            )

        made = companions_of(checkpoints, plan, beside, describe, plan.caveats)
        check_device(settings.device)
        check_output(out, {"": output_sizes(plan, made.files)})
        fingerprint = {
            **{
                f"the checkpoint of step {one.step}": header_fingerprint(one, layout)
                for one, layout in zip(checkpoints, plan.layouts, strict=True)
            },
            "the coefficients": sha256_of_json(coefficients),
            "the version of hubextrap": __version__,
            "the version of torch": version("torch"),
        }
        with staged(out, [""], fingerprint, progress) as staging:
            write_files(staging.folder, made.files)
            (journal,) = staging.journals
            (output,) = run_plan(
                plan,
                sources,
                [LocalSink(staging.folder, journal)],
                journals=[journal],
                progress=progress,
                device=settings.device,
                allow_non_finite=settings.allow_non_finite,
            )
            whole = made.with_shards(output.shards)
            fill_in(staging.folder / PROVENANCE_FILE, whole.files[PROVENANCE_FILE])
