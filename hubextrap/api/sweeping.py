"""`sweep`: a grid of predictions from one pass over the weights, measured, chosen and reported.

What was measured is kept in the sweep's folder under the sha256 of all that it depends on, so a sweep that
was stopped goes on where it was, and a wider grid measures only what is new.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hubextrap._version import __version__
from hubextrap.api.against import Against
from hubextrap.api.beforehand import check_weights
from hubextrap.api.fingerprint import check_unchanged, merge_fingerprint, pin_of
from hubextrap.api.merging import make_in
from hubextrap.api.output import check_output, output_sizes
from hubextrap.api.preparing import MergeOptions, merge_options, prepare
from hubextrap.api.staging import remove_leftover, staged
from hubextrap.digests import sha256_of_json
from hubextrap.durable.atomic import is_new_name, read_sealed, write_sealed, write_whole, writing
from hubextrap.engine.kernels import check_device
from hubextrap.errors import OutputError, RecipeError
from hubextrap.evaluation import EvaluationOptions, Harness, Measurement
from hubextrap.evaluation.curve import draw_sweep, drawing_problem
from hubextrap.evaluation.sweep_report import GridPoint, SweepResult, report_sweep, sweep_markdown
from hubextrap.evaluation.table import LAST, PREDICTION, TARGET
from hubextrap.foreign_data import parse_json
from hubextrap.hub.provenance import without_private_parts
from hubextrap.methods import find_method
from hubextrap.opening import Run
from hubextrap.output_files import file_problem
from hubextrap.progress import Progress, SilentProgress
from hubextrap.recipe.models import one_by_one
from hubextrap.trajectory import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from hubextrap.api.preparing import Prepared
    from hubextrap.clocks import ClockChoice
    from hubextrap.evaluation.options import Backend
    from hubextrap.recipe import EvaluateSection, Recipe
    from hubextrap.scans import Scan

RESULTS_FILE, TABLES_FILE = "sweep.json", "sweep.md"
CURVE_FILE = "sweep.png"
BEST_FILE = "best.yaml"
_REMEDY = "choose another --out"
_KEPT = re.compile(r"[0-9a-f]{64}\.json(?:\.partial)?")


@dataclass(frozen=True, slots=True)
class _Point:
    """A prediction of the grid."""

    grid: GridPoint
    recipe: Recipe
    key: str
    """sha256 of all that its figures depend on."""


class Where(TypedDict, total=False):
    """Where and how an evaluation runs."""

    device: str
    dtype: str
    backend: Backend


def sweep(
    recipe: Recipe,
    out: Path | str,
    *,
    horizons: Sequence[float] = (),
    damping: Sequence[float] = (),
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    clock: ClockChoice | None = None,
    progress: Progress | None = None,
    **where: Unpack[Where],
) -> SweepResult:
    """Measure predictions of every step with every damping; choose on half the problems, report on the other.

    Each checkpoint's weights are read once for all predictions that have not been measured yet; once more
    before that where coefficients follow from them. These predictions lie on the disk until each is measured.

    Args:
        recipe: its evaluate section says which tasks.
        out: the folder for results and for what goes on later; may be there from an earlier sweep.
        horizons: how far to predict, (target − last)/(last − first) on the clock; the recipe's own targets if
            empty.
        damping: shares of the way from the last checkpoint to the prediction; the recipe's own if empty.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.
        clock: what time is counted by, instead of what the recipe says.
        where: device, dtype and backend of the evaluation.

    Raises:
        RecipeError: the recipe has no evaluate section, mixes logits, or the grid is not one.
        HubExtrapError: see `prepare` and `Harness`; the folder cannot be written.
    """
    progress, settings = progress or SilentProgress(), merge_options(settings)
    section, recipe = _section(recipe), recipe.with_clock(clock)
    check_weights(recipe)
    with Run.of(recipe, settings.reading, scan=scan, progress=progress) as run:
        recipe = run.settled(recipe)
        against = Against.pinned(recipe, section, run)
        recipes = _grid(recipe, run, horizons, damping)
        run.check_scan_counts(recipes)
        harness = Harness(EvaluationOptions.of(section, **where), progress)
        folder = _folder(Path(out))  # made when nothing else is wrong
        kept, measured_with = _Kept(folder / "measured"), harness.fingerprint()
        pins = [pin_of(checkpoint) for checkpoint in run.trajectory.checkpoints]
        points = [_point(each, run, pins, measured_with) for each in recipes]
        todo = _todo(points, kept, progress)
        making = _Making(recipe, run, settings, folder, pins, list(todo.values()))
        if missing := making.missing:
            making.prepared(missing, read_weights=False)  # refuses what cannot be made before any is measured
        compared = _references(against, points, progress)
        measurements = [_reference(*each, harness, measured_with, kept) for each in compared]
        making.merge()
    for point in todo.values():
        _measure(point, folder, harness, kept)
    shutil.rmtree(folder / "predictions", ignore_errors=True)
    measurements += [_measured(point, kept) for point in points]
    table, clock = harness.table(measurements), without_private_parts(run.clock.in_words())
    result = report_sweep(table, [point.grid for point in points], clock=clock)
    _save(result, folder, {point.grid.label: point.recipe for point in points}, progress)
    return result


def sweep_files(out: Path | str) -> list[str]:
    """The names of the files for people and programs that a sweep left in its folder."""
    return [name for name in (RESULTS_FILE, TABLES_FILE, CURVE_FILE, BEST_FILE) if Path(out, name).is_file()]


def _section(recipe: Recipe) -> EvaluateSection:
    if recipe.evaluate is None:
        raise RecipeError("a sweep measures predictions; add an evaluate section to the recipe")
    return recipe.evaluate


def _folder(out: Path) -> Path:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: is there already and is no folder; choose another --out", file=out)
    if out.is_dir() and any(out.iterdir()) and not _is_sweep(out):
        raise OutputError(f"{out}: is there already and holds no sweep; choose another --out", file=out)
    for name in (RESULTS_FILE, TABLES_FILE, CURVE_FILE, BEST_FILE):
        if problem := file_problem(out / name):
            raise OutputError(f"{out / name}: {problem}; choose another --out", file=out / name)
    with writing(out, _REMEDY):
        (out / "measured").mkdir(parents=True, exist_ok=True)
    return out


def _is_sweep(out: Path) -> bool:
    """Whether what lies there can only be a sweep's: folders, not links, with what it keeps."""
    measured = out / "measured"
    if measured.is_symlink() or not measured.is_dir() or (out / "predictions").is_symlink():
        return False
    names = [path.name for path in measured.iterdir()]
    beside = {path.name for path in out.iterdir()} - {"measured"}
    return all(is_new_name(name) or _KEPT.fullmatch(name) for name in names) and bool(names or not beside)


def _grid(recipe: Recipe, run: Run, horizons: Sequence[float], damping: Sequence[float]) -> list[Recipe]:
    """A recipe with one target and one damping for each point."""
    if wrong := [value for value in damping if not 0 <= value <= 1]:
        raise RecipeError(f"--damping {wrong[0]:g}: has to be from 0 (the last checkpoint) to 1 (no damping)")
    if damping and {rule.method for rule in recipe.rules} == {"persistence"}:
        raise RecipeError("--damping has no effect on persistence, which is the last checkpoint already")
    targets = [run.target_at(horizon, "--horizons") for horizon in horizons] or one_by_one(recipe)
    return [
        recipe.model_copy(
            update={
                "parameters": recipe.parameters.model_copy(
                    update={**target, "damping": value, "max_expected_error": None}
                ),
                "push": None,
            }
        )
        for target in {repr(target): target for target in targets}.values()
        for value in (dict.fromkeys(damping) or (recipe.parameters.damping,))
    ]


def _point(recipe: Recipe, run: Run, pins: Sequence[str], measured_with: str) -> _Point:
    (step,), damping = recipe.target_steps, recipe.parameters.damping
    steps, times = run.times, run.target_times(recipe)
    rules: list[Any] = []
    for rule in recipe.rules:
        rule.check(steps, times)
        if rule.needs_gram_matrix:  # they follow from the pinned weights and from this
            package = find_method(rule.method).package  # ours changes with __version__
            how: Any = [rule.method, *package, dict(rule.parameters), rule.damping, *times]
        else:
            how = rule.coefficients(steps, times).tolist()
        rules.append([rule.match, how])
    key = sha256_of_json([measured_with, list(pins), list(steps), rules, recipe.out_dtype, __version__])
    label = f"{PREDICTION} {step}"
    if recipe.parameters.target is not None:  # another model than that of the run's own step of this number
        label += " at the peak rate"
    if damping != 1:
        label += f" × {damping if damping == 'auto' else format(damping, 'g')}"
    return _Point(GridPoint(label=label, step=step, damping=damping), recipe, key)


def _todo(points: Sequence[_Point], kept: _Kept, progress: Progress) -> dict[str, _Point]:
    """Those to be measured, by key: points with the same coefficients are one model."""
    missing: dict[str, _Point] = {}
    for point in points:
        if kept.get(point.key, point.grid.label) is None:
            missing.setdefault(point.key, point)
    if done := sum(point.key not in missing for point in points):
        progress.say(f"{done} of {len(points)} predictions were measured before")
    return missing


def _references(
    against: Against, points: Sequence[_Point], progress: Progress
) -> list[tuple[str, Checkpoint]]:
    """The last observed checkpoint, and what else the recipe compares with."""
    rows = {LAST: against.trajectory.last}
    for label, checkpoint in against.entries:
        if checkpoint is not None:
            rows[label] = checkpoint
            continue
        steps = {point.grid.step for point in points if point.recipe.parameters.target is None}
        for step in sorted(steps):
            if (real := against.real(step, progress)) is not None:
                rows[f"{TARGET} {step}"] = real
    return list(rows.items())


class _Kept:
    """Measurements in a folder, each in a file by its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str, label: str) -> Measurement | None:
        """The measurement under ``key``, with the label that it has now."""
        try:
            found = Measurement.model_validate(read_sealed(self._folder / f"{key}.json", nan=True))
        except (OSError, ValueError):
            return None  # not there, not as it was written, or another version's: it is measured again
        return found.labelled(label)

    def put(self, key: str, measurement: Measurement) -> Measurement:
        row = measurement.row.model_copy(update={"reference": ""})  # where it lay is no part of what it is
        content = measurement.model_copy(update={"row": row}).model_dump_json()
        write_sealed(self._folder / f"{key}.json", parse_json(content, key), remedy=_REMEDY)
        return measurement


def _reference(
    label: str, checkpoint: Checkpoint, harness: Harness, measured_with: str, kept: _Kept
) -> Measurement:
    """The figures of a checkpoint that predictions are compared with, measured unless they were before."""
    pin = pin_of(checkpoint)
    key = sha256_of_json([measured_with, pin])
    found = kept.get(key, label)
    if found is None:
        found = harness.measure(label, checkpoint)
        check_unchanged(checkpoint, pin)
        kept.put(key, found)
    return found.of(label, checkpoint)


def _measured(point: _Point, kept: _Kept) -> Measurement:
    found = kept.get(point.key, point.grid.label)
    assert found is not None
    row = found.row.model_copy(update={"step": point.grid.step, "reference": point.grid.label})
    return found.model_copy(update={"row": row})


@dataclass(frozen=True, slots=True)
class _Making:
    """Putting points' models into ``predictions/KEY``, all that are missing in one pass over the weights."""

    recipe: Recipe
    run: Run
    settings: MergeOptions
    folder: Path
    pins: Sequence[str]
    points: Sequence[_Point]

    @property
    def missing(self) -> list[_Point]:
        return [point for point in self.points if not (self.folder / "predictions" / point.key).is_dir()]

    def merge(self) -> None:
        """Make them."""
        if not self.points:
            return
        made, fresh = self.folder / "predictions", self.folder / "merged"
        made.mkdir(exist_ok=True)
        _move(fresh, made)
        if not (missing := self.missing):
            return
        prepared = self.prepared(missing, read_weights=True)
        for checkpoint, pin in zip(self.run.trajectory.checkpoints, self.pins, strict=True):
            check_unchanged(checkpoint, pin)
        remove_leftover(fresh)
        files, names = _files_beside(prepared), [point.key for point in missing]
        with staged(fresh, names, merge_fingerprint(prepared), self.run.progress) as staging:
            make_in(staging, [files] * len(names), prepared.plan, self.run, self.settings)
        _move(fresh, made)

    def prepared(self, missing: Sequence[_Point], *, read_weights: bool) -> Prepared:
        """Their merge, or what would keep it from being done."""
        return prepare(
            self.recipe,
            self.run,
            self.settings,
            read_weights=read_weights,
            variants=[point.recipe for point in missing],
            check=partial(_check_room, out=self.folder / "merged", names=[point.key for point in missing]),
        )


def _check_room(prepared: Prepared, out: Path, names: Sequence[str]) -> None:
    check_device(prepared.settings.device)
    if out.is_dir():  # a pass that is finished, and taken over first
        return
    sizes = output_sizes(prepared.plan, _files_beside(prepared))
    check_output(out, dict.fromkeys(names, sizes))


def _files_beside(prepared: Prepared) -> dict[str, bytes]:
    index = prepared.plan.index_file
    return dict(prepared.beside.files) | ({} if index is None else {index: prepared.plan.index})


def _move(fresh: Path, made: Path) -> None:
    """Take over a finished pass; what is in ``made`` is whole."""
    if fresh.is_dir():
        for prediction in fresh.iterdir():
            prediction.replace(made / prediction.name)
        fresh.rmdir()


def _measure(point: _Point, folder: Path, harness: Harness, kept: _Kept) -> None:
    place = folder / "predictions" / point.key
    checkpoint = Checkpoint(point.grid.step, None, "", None, str(place.resolve()))
    kept.put(point.key, harness.measure(point.grid.label, checkpoint))
    shutil.rmtree(place)


def _save(result: SweepResult, folder: Path, recipes: dict[str, Recipe], progress: Progress) -> None:
    for name in sweep_files(folder):
        (folder / name).unlink()
    texts = {RESULTS_FILE: result.model_dump_json(indent=2) + "\n", TABLES_FILE: sweep_markdown(result)}
    if result.is_better:
        texts[BEST_FILE] = recipes[result.chosen].to_yaml()
    for name, text in texts.items():
        write_whole(folder / name, text.encode(), remedy=_REMEDY)
    if (problem := drawing_problem()) is None:
        draw_sweep(result, folder / CURVE_FILE)
    else:
        progress.say(f"no {CURVE_FILE}: {problem}")
