"""`sweep`: a grid of predictions from one pass over the weights, measured, chosen and reported.

What was measured is kept in the sweep's folder under the sha256 of all that it depends on, so a sweep that
was stopped goes on where it was, and a wider grid measures only what is new.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from hubextrap.api.against import Against
from hubextrap.api.answering import LastAnswers, Scoring
from hubextrap.api.beforehand import check_weights
from hubextrap.api.fingerprint import pin_of, with_bases
from hubextrap.api.grid import REMEDY, Kept, Making, Point, point_of
from hubextrap.api.measured import keep_measurement, known_measurement, measured_checkpoints
from hubextrap.api.measuring import check_measurable, told_with_its_line
from hubextrap.api.preparing import MergeOptions, merge_options
from hubextrap.api.sweep_outlooks import outlooks
from hubextrap.digests import sha256_of_json
from hubextrap.durable.atomic import is_new_name, write_whole, writing
from hubextrap.errors import OutputError, RecipeError
from hubextrap.evaluation import EvaluationOptions, Harness, Measurement
from hubextrap.evaluation.curve import draw_sweep, drawing_problem
from hubextrap.evaluation.run import chosen_device
from hubextrap.evaluation.sweep_report import GridPoint, SweepResult, report_sweep, sweep_markdown
from hubextrap.evaluation.table import LAST, TARGET
from hubextrap.given import check_names, numbers_of, path_of, recipe_of
from hubextrap.hub.provenance import without_private_parts
from hubextrap.opening import Run
from hubextrap.output_files import file_problem
from hubextrap.progress import Progress, SilentProgress
from hubextrap.recipe.models import one_by_one
from hubextrap.trajectory import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from hubextrap.clocks import ClockChoice
    from hubextrap.evaluation.options import Backend
    from hubextrap.recipe import EvaluateSection, Recipe
    from hubextrap.scans import Scan

RESULTS_FILE, TABLES_FILE = "sweep.json", "sweep.md"
CURVE_FILE = "sweep.png"
BEST_FILE = "best.yaml"
_KEPT = re.compile(r"[0-9a-f]{64}\.json(?:\.partial)?")


class Where(TypedDict, total=False):
    """Where and how an evaluation runs."""

    device: str
    dtype: str
    backend: Backend


def sweep(
    recipe: Recipe | Path | str,
    out: Path | str,
    *,
    horizons: Sequence[float] | float = (),
    damping: Sequence[float] | float = (),
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
        recipe: it, or its file; its evaluate section says which tasks.
        out: the folder for results and for what goes on later; may be there from an earlier sweep.
        horizons: how far, (target − last)/(last − first) on the clock; the recipe's own targets if empty.
        damping: shares of the way from the last checkpoint to the prediction; the recipe's own if empty.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.
        clock: what time is counted by, instead of what the recipe says.
        where: device, dtype and backend of the evaluation.

    Raises:
        RecipeError: the recipe has no evaluate section, mixes logits, or the grid is not one.
        HubExtrapError: see `prepare` and `Harness`; the folder cannot be written.
    """
    check_names("sweep", where, Where)
    progress, settings = progress or SilentProgress(), merge_options(settings)
    recipe, out = recipe_of(recipe), path_of("out", out)
    horizons, damping = numbers_of("horizons", horizons), numbers_of("damping", damping)
    as_written, section, recipe = recipe, _section(recipe), recipe.with_clock(clock)
    with Run.of(recipe, settings.reading, scan=scan, progress=progress) as run:
        recipe = run.settled(recipe)
        recipes = _grid(recipe, run, horizons, damping)
        run.check_scan_counts(recipes)
        options = EvaluationOptions.of(section, **where, executor=settings.executor)
        harness, against = _measuring(as_written, recipe, options, run)
        folder = _folder(out)  # made when nothing else is wrong
        kept, measured_with = Kept(folder / "measured"), with_bases(harness.fingerprint(), run.bases)
        pins = [pin_of(checkpoint) for checkpoint in run.trajectory.checkpoints]
        points = [point_of(each, run, pins, measured_with) for each in recipes]
        todo = _todo(points, kept, own := _own(harness, run, pins[-1], kept, progress), progress)
        making = Making(recipe, run, settings, folder, pins, list(todo.values()))
        if missing := making.missing:
            making.prepared(missing, read_weights=False)  # refuses what cannot be made before any is measured
        compared = _references(against, points, progress)
        measurements = measured_checkpoints(compared, harness, measured_with, kept)
        making.merge()
        said = outlooks(points, run, kept)
    _measure(list(todo.values()), making, harness, kept, own)
    shutil.rmtree(folder / "predictions", ignore_errors=True)
    measurements += [_measured(point, kept) for point in points]
    clock_said = without_private_parts(run.clock.in_words())
    result = report_sweep(harness.table(measurements), _told(points, own, said), clock=clock_said)
    _save(result, folder, {point.grid.label: point.recipe for point in points}, progress)
    return result


def _todo(points: Sequence[Point], kept: Kept, own: _Own | None, progress: Progress) -> dict[str, Point]:
    """What is to be measured; points with the same coefficients are one model."""
    todo: dict[str, Point] = {}
    for point in points:
        if known_measurement(point.key, point.grid.label, kept) is None or not (
            own is None or own.knows(point)
        ):
            todo.setdefault(point.key, point)
    if done := sum(point.key not in todo for point in points):
        progress.say(f"{done} of {len(points)} predictions were measured before")
    return todo


def sweep_files(out: Path | str) -> list[str]:
    """The names of the files for people and programs that a sweep left in its folder."""
    folder = path_of("out", out)
    return [name for name in (RESULTS_FILE, TABLES_FILE, CURVE_FILE, BEST_FILE) if (folder / name).is_file()]


def _section(recipe: Recipe) -> EvaluateSection:
    if recipe.evaluate is None:
        raise RecipeError("a sweep measures predictions; add an evaluate section to the recipe")
    check_weights(recipe)
    return recipe.evaluate


def _folder(out: Path) -> Path:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: is there already and is no folder; choose another --out", file=out)
    if out.is_dir() and any(out.iterdir()) and not _is_sweep(out):
        raise OutputError(f"{out}: is there already and holds no sweep; choose another --out", file=out)
    for name in (RESULTS_FILE, TABLES_FILE, CURVE_FILE, BEST_FILE):
        if problem := file_problem(out / name):
            raise OutputError(f"{out / name}: {problem}; choose another --out", file=out / name)
    with writing(out, REMEDY):
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


def _measuring(
    as_written: Recipe, recipe: Recipe, options: EvaluationOptions, run: Run
) -> tuple[Harness, Against]:
    """What measures, and what the predictions are compared with, found to load."""
    assert as_written.evaluate is not None
    with told_with_its_line(as_written):
        against = Against.pinned(recipe, as_written.evaluate, run)
        harness = Harness(options, run.progress)
        check_measurable(harness, against, run)
    return harness, against


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


def _references(
    against: Against, points: Sequence[Point], progress: Progress
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


def _measured(point: Point, kept: Kept) -> Measurement:
    found = known_measurement(point.key, point.grid.label, kept)
    assert found is not None
    row = found.row.model_copy(update={"step": point.grid.step, "reference": point.grid.label})
    return found.model_copy(update={"row": row})


def _measure(points: Sequence[Point], making: Making, harness: Harness, kept: Kept, own: _Own | None) -> None:
    """Measure what was not; a prediction goes as soon as nothing is left to be found out about it."""

    def end(point: Point) -> None:
        checkpoint = making.model_of(point)
        if own is not None:
            own.score(own.key_of(point), checkpoint)
        shutil.rmtree(checkpoint.path)

    todo = []
    for point in points:
        known = known_measurement(point.key, point.grid.label, kept)
        end(point) if known is not None else todo.append(point)
    for number, found in harness.measure_each([(one.grid.label, making.model_of(one)) for one in todo]):
        keep_measurement(todo[number].key, found, kept)
        end(todo[number])


@dataclass(frozen=True, slots=True)
class _Own:
    """How likely the last checkpoint's own greedy answers are under each prediction."""

    last: LastAnswers

    def key_of(self, point: Point | None) -> str:
        """Of a prediction, or of the last checkpoint itself."""
        return sha256_of_json([self.last.fingerprint, self.last.pin, None if point is None else point.key])

    def knows(self, point: Point) -> bool:
        return self.last.kept.get(self.key_of(point)) is not None

    def score(self, key: str, checkpoint: Checkpoint) -> float:
        """The mean log-probability under a checkpoint, measured unless it was before."""
        if (found := self.last.kept.get(key)) is None:
            answers, _ = self.last.draw()
            with self.last.progress.stage("score own answers", len(answers.answers), "answers") as stage:
                found = {"value": self.last.logprob_under(self.last.load(checkpoint), answers, stage.advance)}
            self.last.kept.put(key, found)
        return float(found["value"])

    def told(self, point: Point) -> GridPoint:
        before = self.score(self.key_of(None), self.last.last)
        after = float(self.last.kept.get(self.key_of(point))["value"])
        return point.grid.model_copy(update={"own_answers": after - before})


def _told(points: Sequence[Point], own: _Own | None, said: Sequence[dict[str, Any]]) -> list[GridPoint]:
    """The points, with the change of own answers and what was said of them beforehand."""
    told = [point.grid if own is None else own.told(point) for point in points]
    return [point.model_copy(update=one) for point, one in zip(told, said, strict=True)]


def _own(harness: Harness, run: Run, pin: str, kept: Kept, progress: Progress) -> _Own | None:
    """None where no task is answered by text; with vLLM, which leaves no room for another model."""
    settings = harness.settings
    questions = None if settings.backend == "vllm" else harness.questions()
    if questions is None:
        return None
    device = settings.device
    if harness.options.executor != "local" and device != "cpu":
        device = chosen_device("auto")  # this process scores them, on what it has
    scoring = Scoring(device, settings.dtype)
    last = LastAnswers(run.trajectory.last, pin, questions, kept, scoring, progress, bases=run.bases)
    return _Own(last)


def _save(result: SweepResult, folder: Path, recipes: dict[str, Recipe], progress: Progress) -> None:
    for name in sweep_files(folder):
        (folder / name).unlink()
    texts = {RESULTS_FILE: result.model_dump_json(indent=2) + "\n", TABLES_FILE: sweep_markdown(result)}
    if result.is_better:
        texts[BEST_FILE] = recipes[result.chosen].to_yaml()
    for name, text in texts.items():
        write_whole(folder / name, text.encode(), remedy=REMEDY)
    if (problem := drawing_problem()) is None:
        draw_sweep(result, folder / CURVE_FILE)
    else:
        progress.say(f"no {CURVE_FILE}: {problem}")
