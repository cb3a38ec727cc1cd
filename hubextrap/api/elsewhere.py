"""What is read and measured by an executor, and not in this process: a scan, and models that are measured.

The plan and its records lie in ``hubextrap/work`` under huggingface_hub's home until the work is whole, so
that what was stopped goes on where it was. Ray's records come back from nodes that do not see it.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.api.recorded import units_on_record
from hubextrap.api.staging import WORK, held_place
from hubextrap.digests import sha256_of_json
from hubextrap.durable.places import remove_marked
from hubextrap.errors import CheckpointError, EvaluationError
from hubextrap.executors.driving import do_all, placed
from hubextrap.executors.named import executor_named
from hubextrap.work.evaluating import EvalWork
from hubextrap.work.places import FolderPlace
from hubextrap.work.scanning import ScanWork

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.evaluation import Harness, Measurement
    from hubextrap.executors.interface import Executor
    from hubextrap.logits import Mixture
    from hubextrap.opening import Run
    from hubextrap.progress import Progress
    from hubextrap.scans import Scan
    from hubextrap.trajectory import Checkpoint


def scan_elsewhere(run: Run, plan: ScanPlan, reference_share: float | None) -> Scan:
    """`engine.scan.scan_trajectory` of an open run by the executor that its options name, to the last bit.

    Raises:
        HubExtrapError: as `engine.scan.scan_trajectory`, or the executor's own.
    """
    return scan_by(executor_named(run.reading.executor), run, plan, reference_share)


def scan_by(executor: Executor, run: Run, plan: ScanPlan, reference_share: float | None) -> Scan:
    """The same by any executor."""
    for note in plan.notes:
        run.progress.say(note)
    pins = {str(step): pin for step, pin in zip(run.steps, run.fingerprints, strict=True)}
    checkpoints, reading = run.trajectory.checkpoints, run.reading
    work = ScanWork.of(
        checkpoints,
        run.sources,
        plan,
        pins,
        tied=run.tied,
        reference_share=reference_share,
        cache=reading.cache,
    )
    with _held_work("scan", [pins, reference_share], run.progress) as place:
        work, records = placed(work, place)
        if records:
            run.progress.say(f"resuming: {len(records)} of {work.units} units are there")
        tensors = work.found(do_all(work, place, executor, records, run.progress))
    from hubextrap.engine.scan import assemble_scan  # imports numba

    return assemble_scan(run.trajectory, work.scan, tensors, reference_share, run.fingerprints)


def measure_elsewhere(
    harness: Harness, rows: Sequence[tuple[str, Checkpoint | Mixture]]
) -> Iterator[tuple[int, Measurement]]:
    """`Harness.measure_each` by the executor that its options name; no model is loaded here.

    Raises:
        EvaluationError: a model met other tasks than the first one.
        HubExtrapError: as `Harness.measure`, or the executor's own.
    """
    executor = executor_named(harness.options.executor)
    work, progress = EvalWork.of(harness.options, rows), harness.progress
    with _held_work("eval", work.to_bytes().decode(), progress) as place:
        work, records = placed(work, place)
        if records:
            progress.say(f"resuming: {len(records)} of {work.units} models were measured before")
        todo = [unit for unit in range(work.units) if unit not in records]
        first: tuple[str, Measurement] | None = None
        for record in chain(records.values(), executor.run(work, place, todo, progress) if todo else ()):
            found = work.measured(record)
            first = first or (work.labels[record.unit], found)
            _check_same_tasks(first, work.labels[record.unit], found)
            yield record.unit, found


def _check_same_tasks(first: tuple[str, Measurement], label: str, found: Measurement) -> None:
    """Refuse figures of tasks that are called the same on two machines, and differ."""
    for name, task in found.tasks.items():
        if (other := first[1].tasks.get(name)) != task:
            what = "is unknown" if other is None else "is another"
            raise EvaluationError(
                f"{name}: where {label} was measured, the task {what} than where {first[0]} was: its file or "
                "its data differ between the machines; make them the same, then run the same command again"
            )


@contextmanager
def _held_work(kind: str, of: object, progress: Progress) -> Iterator[FolderPlace]:
    """A place for a plan, held; it stays if an error ends the work and some of it is worth keeping.

    Args:
        of: what decides the results, JSON values.

    Raises:
        OutputError: it cannot be made, or another run holds it.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME, "hubextrap", WORK, f"{kind}-{sha256_of_json(of)[:20]}").absolute()
    with held_place(folder, f"this {kind}", progress, like=None):
        try:
            yield FolderPlace(folder / WORK)
        except BaseException as error:
            # what is wrong with a checkpoint is so at every run, so nothing is to be gained from keeping
            if isinstance(error, CheckpointError) or not units_on_record(folder / WORK):
                remove_marked(folder)
            raise
        remove_marked(folder)
