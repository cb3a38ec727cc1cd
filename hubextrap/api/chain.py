"""`run`: a merge and what follows it, the whole chain in one call."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.api.adapting import output_kind
from hubextrap.api.against import Against
from hubextrap.api.choosing import choose_step
from hubextrap.api.fingerprint import check_unchanged, pin_of
from hubextrap.api.measuring import check_measurable, told_with_its_line
from hubextrap.api.merging import Made, MergeResult, Prediction, make, places_of, push_made
from hubextrap.api.outlook import check_rehearsable, outlooks_of
from hubextrap.api.planning import check_destinations, recipe_push_targets
from hubextrap.api.preparing import MergeOptions, merge_options
from hubextrap.api.preparing import opened as open_for
from hubextrap.errors import RecipeError
from hubextrap.evaluation import (
    EvaluationOptions,
    Harness,
    check_replaceable,
    check_writable,
)
from hubextrap.evaluation.comparison import Rows
from hubextrap.evaluation.table import PREDICTION
from hubextrap.evaluation.targets import place_of
from hubextrap.given import optional_path, recipe_of
from hubextrap.logits import Mixture, recipe_mixture
from hubextrap.notebooks import counted, one_line
from hubextrap.opening import ReadingOptions, Run
from hubextrap.progress import Progress, SilentProgress
from hubextrap.trajectory import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hubextrap.evaluation import EvaluationTable, Gate, GateResult, Measurement
    from hubextrap.evaluation.walk_report import WalkReport
    from hubextrap.recipe import EvaluateSection, Recipe
    from hubextrap.scans import Scan
    from hubextrap.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `run` made and measured."""

    predictions: tuple[Prediction, ...]
    tables: tuple[EvaluationTable, ...]
    """One per target step; empty when the recipe asks for no evaluation."""
    walk: WalkReport | None = None
    """How the step was chosen, where the recipe does not name it."""
    gate: GateResult | None = None
    """What the gate said, where there was one."""

    def __repr__(self) -> str:
        return one_line(self, *places_of(self.predictions), counted(len(self.tables), "evaluation"))


def run(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    output: Path | str | None = None,
    gate: Gate | None = None,
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    opened: Run | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Merge, push and evaluate as the recipe says; with ``space: logits``, evaluate the mixture.

    Tasks and destinations are checked, and everything that the prediction is compared with is pinned and
    found to load, before a weight is read. Where the evaluation fails, the same call goes on with it.

    Args:
        out: a folder for the prediction; without it, it goes straight to the Hub.
        output: a file for the evaluation, as JSON; one per target step, ``name.step_<n>.json``, if several.
        gate: what the predictions have to reach; the result says whether they do.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.
        opened: the recipe's run, where it is open.

    Raises:
        HubExtrapError: see `merge` and `hubextrap.evaluation.evaluate`.
    """
    progress = progress or (SilentProgress() if opened is None else opened.progress)
    settings, recipe = merge_options(settings), recipe_of(recipe)
    out, output = optional_path("out", out), optional_path("output", output)
    section = recipe.evaluate
    pushes_later = gate is not None and gate.push_if_better
    _check_gate(recipe, gate, out)
    _check_places(recipe, out, output, settings)
    with told_with_its_line(recipe):
        harness = _harness(section, settings if opened is None else opened.reading, progress)
    mixtures: list[Mixture] = []
    with open_for(recipe, opened, settings, scan, progress) as (found, settings):
        against = _against(recipe, harness, found)
        recipe = found.settled(recipe)
        far = found.settled(recipe.farthest)
        if output is not None:  # now that each target's name is known
            _check_output(far, section, output)
        used = {} if against is None else _used(found.trajectory, against)
        if recipe.space == "weights":
            targets = recipe_push_targets(far)
            made = make(recipe, found, settings, out=out, targets=targets, hold=pushes_later)
        else:
            made, mixtures = _mixed(recipe, found, settings)
        kind = output_kind(recipe, found)
    predictions = made.result.predictions
    tables: tuple[EvaluationTable, ...] = ()
    if harness is not None and against is not None:
        rows = _rows(against, [*predictions, *mixtures], kind, progress)
        with _going_on(predictions, progress):
            tables = _evaluated(recipe, harness, rows, used, output)
    judged = None if gate is None or section is None else gate.judge(tables, section.tasks)
    if pushes_later and judged is not None and judged.passed:
        predictions = tuple(push_made(one, progress) for one in predictions)
    made.settle()
    return RunResult(predictions, tables, made.result.walk, judged)


def _harness(section: EvaluateSection | None, reading: ReadingOptions, progress: Progress) -> Harness | None:
    """What measures as a recipe says."""
    if section is None:
        return None
    return Harness(EvaluationOptions.of(section, executor=reading.executor), progress)


def _check_places(
    recipe: Recipe, out: Path | str | None, output: Path | None, settings: MergeOptions
) -> None:
    """Refuse what goes nowhere, or where it cannot, before anything is looked for."""
    if recipe.space == "logits":
        _check_mixed(recipe, out, settings)
    else:
        check_destinations(recipe, out is not None, [])
    if output is not None:
        _check_output(recipe.farthest, recipe.evaluate, output)


def _against(recipe: Recipe, harness: Harness | None, run: Run) -> Against | None:
    """What the predictions are compared with, pinned and found to load; None where nothing is measured."""
    if harness is None or recipe.evaluate is None:
        return None
    with told_with_its_line(recipe):
        against = Against.pinned(run.settled(recipe), recipe.evaluate, run)
        check_measurable(harness, against, run)
    return against


@contextmanager
def _going_on(predictions: Sequence[Prediction], progress: Progress) -> Iterator[None]:
    """Where what follows a merge fails, say that the merge is not lost."""
    try:
        yield
    except BaseException:
        if predictions:
            progress.say("the prediction is whole; the same command goes on with its evaluation")
        raise


def _check_gate(recipe: Recipe, gate: Gate | None, out: Path | str | None) -> None:
    """Refuse, before anything is merged, to judge what is not measured, or to keep what would go nowhere."""
    if gate is None:
        return
    if gate.push_if_better:
        _check_pushed_from(recipe, out)
    section = recipe.evaluate
    if section is None:
        raise RecipeError(
            f"{gate.option}: the recipe has no evaluate section, so there will be nothing to judge"
        )
    labels = [PREDICTION, *(entry.partition("=")[0] for entry in section.against)]
    gate.check(labels, [*section.tasks, *(Path(file).stem for file in section.task_files)])


def _check_pushed_from(recipe: Recipe, out: Path | str | None) -> None:
    if recipe.push is None:
        raise RecipeError(
            "--push-if-better: the recipe has no push section, which says where; write one, or leave it out"
        )
    if out is None:
        raise RecipeError(
            "--push-if-better: the prediction lies on the disk while it is judged, and stays there if it "
            "does not pass; give a folder (--out DIR)"
        )


def _mixed(recipe: Recipe, opened: Run, settings: MergeOptions) -> tuple[Made, list[Mixture]]:
    """What logits are mixed of, at the steps that the recipe names or its walk chooses."""
    chosen = choose_step(recipe, opened, settings, out=None, targets=())
    check_rehearsable([chosen.recipe], opened, settings.force or chosen.report is not None)
    for outlook in outlooks_of(chosen.recipe, opened, None, ()):
        opened.warn(*outlook.warnings)
    steps = chosen.recipe.target_steps
    mixtures = [recipe_mixture(chosen.recipe, target_step=step, run=opened) for step in steps]
    places = () if chosen.place is None else (chosen.place,)
    return Made(MergeResult((), chosen.report), places), mixtures


def _evaluated(
    recipe: Recipe,
    harness: Harness,
    compared: Iterable[tuple[int, Sequence[tuple[str, Checkpoint | Mixture]]]],
    used: dict[Checkpoint, str],
    output: Path | None,
) -> tuple[EvaluationTable, ...]:
    """A table for each target step, saved as soon as it is there."""
    known: dict[Checkpoint | Mixture, Measurement] = {}
    tables = []
    for step, rows in compared:
        todo: dict[Checkpoint | Mixture, str] = {}
        for label, checkpoint in rows:
            if checkpoint not in known:  # the last observed one is, from the second target step on
                todo.setdefault(checkpoint, label)
        models = [(label, checkpoint) for checkpoint, label in todo.items()]
        for number, found in harness.measure_each(models):
            known[models[number][1]] = found
            _check_used(models[number][1], used)
        table = harness.table([known[checkpoint].labelled(label) for label, checkpoint in rows])
        if output is not None:
            table.save(_output_of(output, step, recipe))
        tables.append(table)
    return tuple(tables)


def _rows(
    against: Against, predictions: Sequence[Prediction | Mixture], kind: str, progress: Progress
) -> Iterator[tuple[int, Sequence[tuple[str, Checkpoint | Mixture]]]]:
    """For each target step, what is to be measured, labelled; ``kind``: of the predictions."""
    for prediction in predictions:
        if isinstance(prediction, Mixture):
            assert prediction.target_step is not None
            step = prediction.target_step
            yield step, [(PREDICTION, prediction), *against.at(step, progress)]
            continue
        made, rows = _checkpoint(prediction, kind), Rows()
        for label, checkpoint in against.at(prediction.step, progress):
            rows.add(label, checkpoint)
        others = [row for row in rows.items if place_of(row[1]) != place_of(made)]
        yield prediction.step, [(PREDICTION, made), *others]


def _check_mixed(recipe: Recipe, out: Path | str | None, settings: MergeOptions) -> None:
    """Refuse a run of ``space: logits`` that would do nothing, or cannot do what it is asked for."""
    if out is not None:
        raise RecipeError("--out: with space: logits there are no weights to write; leave it out")
    if recipe.evaluate is None:
        raise RecipeError(
            "space: logits writes no model, so a run is its evaluation; add an evaluate section, or complete "
            "prompts with `hubextrap generate`"
        )
    for name in ("device", "allow_non_finite"):
        if getattr(settings, name) != getattr(MergeOptions(), name):
            raise RecipeError(
                f"settings.{name} has no effect on space: logits, which merges no weights; leave it out"
            )


def _used(trajectory: Trajectory, against: Against) -> dict[Checkpoint, str]:
    """What stands for each checkpoint on the disk that will be merged or mixed, and measured after that."""
    listed = [checkpoint for _, checkpoint in against.entries]
    local = [one for one in (*trajectory.checkpoints, *listed) if one is not None and one.repo is None]
    return {one: pin_of(one) for one in dict.fromkeys(local)}


def _check_used(measured: Checkpoint | Mixture, used: dict[Checkpoint, str]) -> None:
    """Refuse a measurement of a checkpoint that is not what was merged, or what the others were."""
    for checkpoint in measured.checkpoints if isinstance(measured, Mixture) else (measured,):
        if checkpoint in used:
            check_unchanged(checkpoint, used[checkpoint])


def _output_of(output: Path, step: int, recipe: Recipe) -> Path:
    return output if recipe.target_count == 1 else output.with_suffix(f".step_{step}.json")


def _check_output(recipe: Recipe, section: EvaluateSection | None, output: Path) -> None:
    """Refuse, before anything is merged, results that cannot be written or that others would be lost by."""
    if section is None:
        raise RecipeError("--output: the recipe has no evaluate section, so there will be nothing to save")
    check_writable(output)
    for step in recipe.target_steps:
        names = [*section.tasks, *(Path(file).stem for file in section.task_files)]
        labels = [PREDICTION]
        for entry in section.against:  # a role, role=REF, or a reference, whose row is called like its folder
            labels += [entry.partition("=")[0], entry, Path(entry).name]
        check_replaceable(_output_of(output, step, recipe), names, [(label, None) for label in labels])


def _checkpoint(prediction: Prediction, kind: str) -> Checkpoint:
    """What was made: the commit that was pushed, whatever its branch holds by now, or else the folder."""
    pushed, target = prediction.pushed, prediction.target
    if pushed is None or target is None:
        place = str(Path(prediction.folder or "").resolve())
        return Checkpoint(prediction.step, None, "", None, place, kind=kind)
    revision = pushed.commit if target.create_pr else target.revision
    return Checkpoint(prediction.step, target.repo, revision, pushed.commit, "", kind=kind)
