"""`evaluate_steps`: the scores of every checkpoint of a run, and whether they still rise at its end.

Figures are kept in ``hubextrap/scores`` under huggingface_hub's home, by all that they depend on: checkpoint,
tasks and settings. Of a run that grew only the new checkpoints are measured, and a stopped command goes on.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.adapters.base import Bases
from hubextrap.api.fingerprint import pin_of, with_bases
from hubextrap.api.grid import Kept
from hubextrap.api.measured import checkpoint_key, known_measurement, measured_checkpoints
from hubextrap.durable.atomic import writing
from hubextrap.errors import CorruptFile, EvaluationError, OutputError
from hubextrap.evaluation import (
    EvaluationOptions,
    Harness,
    check_replaceable,
    check_writable,
    compared_checkpoints,
)
from hubextrap.evaluation.curve import check_drawable, draw_steps
from hubextrap.evaluation.inputs import is_input
from hubextrap.evaluation.logged import read_logged_columns
from hubextrap.evaluation.slopes import LEAST, logged_slope, table_slopes
from hubextrap.evaluation.step_scores import SHOWN, StepScores
from hubextrap.evaluation.table import LAST, TARGET
from hubextrap.evaluation.targets import place_of, provenance_of
from hubextrap.extras import require
from hubextrap.given import optional_path, texts_of
from hubextrap.progress import SilentProgress
from hubextrap.tensors import open_source
from hubextrap.timing import state_beside
from hubextrap.trajectory import Pins, Trajectory, TrajectoryOptions, find_trajectory
from hubextrap.trajectory.reference import reference_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.evaluation import EvaluationTable
    from hubextrap.evaluation.logged import LoggedColumn
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Checkpoint

_REMEDY = "choose another HF_HOME"
_GIVE_TASKS = "give tasks to measure its checkpoints with: --tasks LIST or --task-file FILE"


def evaluate_steps(
    run: Trajectory | Path | str,
    options: EvaluationOptions | Sequence[str] = (),
    *,
    beside: Sequence[str] = (),
    trajectory: TrajectoryOptions | None = None,
    output: Path | str | None = None,
    plot: Path | str | None = None,
    progress: Progress | None = None,
    **named: Any,
) -> StepScores:
    """Measure every checkpoint of a run that was not measured before; say whether the scores still rise.

    What the trainer logged of rewards and evaluations is read beside the last checkpoint, and needs no tasks.

    Args:
        run: a folder or repo, as `find_trajectory` takes it, or its result.
        options: tasks and settings, or tasks alone; none: only what the trainer logged.
        beside: references of predictions, or of other checkpoints, to be measured too.
        trajectory: which checkpoints of ``run``.
        output: where the table is saved as JSON; earlier results of the same run are replaced.
        plot: where the scores are drawn over the steps, as a PNG.
        named: fields of `EvaluationOptions` that differ from ``options``: ``limit=100``.

    Raises:
        EvaluationError: there are neither tasks nor a trainer's log; a task is unknown; a model does not run.
        TrajectoryError, CheckpointError: a reference leads nowhere.
        MissingExtra: lm-eval, or matplotlib for ``plot``, is not installed.
        OutputError: nothing can be kept under huggingface_hub's home, or written to ``output`` or ``plot``.
    """
    progress, pins = progress or SilentProgress(), Pins()
    if not isinstance(options, EvaluationOptions):
        options = EvaluationOptions(options)
    options = replace(options, **named)
    table_file, plot_file = optional_path("output", output), optional_path("plot", plot)
    beside = texts_of("beside", beside)
    _check_beforehand(options, table_file, plot_file, beside)
    name = run.series if isinstance(run, Trajectory) else reference_text(run, "run")
    if not isinstance(run, Trajectory):
        run = find_trajectory(run, trajectory, pins=pins, progress=progress)
    elif trajectory is not None:
        raise EvaluationError("trajectory has no effect on a run whose checkpoints are chosen; leave it out")
    logged, problem = _logged(run)
    table: EvaluationTable | None = None
    own: list[str] = []
    if options.names:
        rows, own = _rows(run, beside, pins, progress)
        if table_file is not None:
            _check_replaceable(table_file, options, rows)
        table = _measured(rows, Harness(options, progress, Bases(run.base_model, pins)), progress)
    elif not logged:
        none = f"{run.last.name}: there is no trainer_state.json that holds a reward or eval_* column"
        raise EvaluationError(f"{problem or none}; {_GIVE_TASKS}")
    scores = _scores(name, run, table, own, logged, (problem,) if problem else ())
    if table_file is not None and table is not None:
        table.save(table_file)
    if plot_file is not None:
        draw_steps(scores, plot_file)
    return scores


def _check_beforehand(
    options: EvaluationOptions, output: Path | None, plot: Path | None, beside: Sequence[str]
) -> None:
    """Refuse what cannot end well, before anything is asked of a Hub."""
    if not options.names:
        if beside:
            raise EvaluationError(f"{beside[0]}: there is nothing to measure it with; {_GIVE_TASKS}")
        if output is not None:
            raise EvaluationError(f"{output}: there is nothing to save: nothing is measured; {_GIVE_TASKS}")
    if output is not None:
        check_writable(output)
    if plot is not None:
        check_drawable(plot)
    if options.names:
        require("eval", "an evaluation", load=False)


def _check_replaceable(
    output: Path, options: EvaluationOptions, rows: Sequence[tuple[str, Checkpoint]]
) -> None:
    """Refuse to lose results of other checkpoints; a run that grew has others for its last and target."""
    called = [(label, item.name) for label, item in rows]
    called += [(label, item.name) for _, item in rows for label in (LAST, TARGET, f"step {item.step}")]
    check_replaceable(output, options.names, called)


def _scores(
    name: str,
    run: Trajectory,
    table: EvaluationTable | None,
    own: Sequence[str],
    logged: tuple[LoggedColumn, ...],
    notes: tuple[str, ...],
) -> StepScores:
    slopes = () if table is None else table_slopes(table, own)
    if table is not None and len(run.steps) < LEAST:
        count = f"{len(run.steps)} checkpoint{'s' * (len(run.steps) > 1)}"
        notes = (*notes, f"{count}: too few to say whether the score still rises; that takes {LEAST}.")
    lines = (logged_slope(column) for column in logged[:SHOWN] if column.is_main)
    return StepScores(
        name, run.steps, table, logged, (*slopes, *(line for line in lines if line is not None)), notes
    )


def _logged(run: Trajectory) -> tuple[tuple[LoggedColumn, ...], str | None]:
    """What lies beside the last checkpoint says of rewards and evaluations; why it is not read."""
    last = run.last
    with closing(open_source(last)) as source:
        found = state_beside(last, source)
    if found is None or isinstance(found, str):
        return (), found
    name, content = found
    try:
        return read_logged_columns(content, name, last.step), None
    except CorruptFile as error:
        return (), str(error)


def _rows(
    run: Trajectory, beside: Sequence[str], pins: Pins, progress: Progress
) -> tuple[list[tuple[str, Checkpoint]], list[str]]:
    """Every checkpoint that is measured, labelled; and the labels of the run's own.

    ``last`` is the checkpoint that the predictions were made from, else the run's last one.
    """
    others = compared_checkpoints(beside, (), pins=pins, progress=progress)
    last: Checkpoint | None = None
    targets: set[int] = set()
    for _, item in others:
        if (made_from := provenance_of(item)) is None:
            continue
        source = made_from.inputs[-1]
        found = next((one for one in run.checkpoints if is_input(one, source, progress)), None)
        if found is None:
            progress.warn(
                f"{item.name}: was not made from these checkpoints: its last one, step {source.step}, is not "
                f"among them; it is compared with step {run.last.step}"
            )
            found = run.last
        elif "target" not in made_from.parameters:
            targets.add(item.step)
        if last not in (None, found):
            raise EvaluationError(
                f"{item.name}: is compared with step {found.step}, and the other predictions with another; "
                "evaluate them one by one"
            )
        last = found
    last = last or run.last
    own = []
    for item in run.checkpoints:
        label = LAST if item == last else f"step {item.step}"
        if len(targets) == 1 and item.step in targets and item != last:
            label = TARGET
        own.append((label, item))
    places = {place_of(item) for item in run.checkpoints}
    rows = [*own, *((label, item) for label, item in others if place_of(item) not in places)]
    return rows, [label for label, _ in own]


def _measured(
    rows: Sequence[tuple[str, Checkpoint]], harness: Harness, progress: Progress
) -> EvaluationTable:
    """All of them in one table; what was measured before is not measured again."""
    harness.bases.find(item for _, item in rows)
    measured_with = with_bases(harness.fingerprint(), harness.bases)
    kept = Kept(_kept_folder(), _REMEDY)
    known = [
        known_measurement(checkpoint_key(measured_with, pin_of(item)), label, kept) for label, item in rows
    ]
    if done := sum(one is not None for one in known):
        progress.say(f"{done} of {len(rows)} checkpoints were measured before")
    return harness.table(measured_checkpoints(rows, harness, measured_with, kept))


def _kept_folder() -> Path:
    """Where figures are kept, made if need be: found out before an hour's work whether that can be.

    Raises:
        OutputError: nothing can be written there.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME, "hubextrap", "scores")
    with writing(folder, _REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: figures cannot be kept there: not writable; {_REMEDY}", file=folder)
    return folder
