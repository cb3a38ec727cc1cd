"""Choosing a target step by what the model can still do: a walk along the prediction.

The last checkpoint answers once. Its answers are scored under the recipe's prediction of each step of a grid,
and the step is chosen where they are likeliest; or answers are drawn and judged at each step.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hubextrap.api.answering import LastAnswers, Scoring
from hubextrap.api.beforehand import problems_beforehand, refuse
from hubextrap.api.fingerprint import check_unchanged, pin_of
from hubextrap.api.fitting import fit_rules
from hubextrap.api.grid import Kept, Making, Point, point_of
from hubextrap.api.output import check_output, output_sizes
from hubextrap.api.preparing import Addition, prepare
from hubextrap.api.staging import held_place, walk_place
from hubextrap.digests import sha256_of_json
from hubextrap.durable.places import check_place
from hubextrap.errors import EvaluationError, HubExtrapError, MethodError, RecipeError, StepError
from hubextrap.evaluation.asking import Questions, questions_of
from hubextrap.evaluation.curve import drawing_problem, walk_picture
from hubextrap.evaluation.run import chosen_device
from hubextrap.evaluation.walk_report import (
    JSON_FILE,
    PICTURE_FILE,
    TEXT_FILE,
    LeftOut,
    WalkPoint,
    WalkReport,
    best_of,
    walk_markdown,
    walk_sentence,
)
from hubextrap.extras import require
from hubextrap.logits import recipe_mixture
from hubextrap.opening import needs_scan
from hubextrap.progress import SilentProgress
from hubextrap.recipe import Parameters
from hubextrap.recipe.targets import FullRateTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hubextrap.api.preparing import MergeOptions, Prepared
    from hubextrap.evaluation.own_answers import OwnAnswers
    from hubextrap.hub import PushTarget
    from hubextrap.logits import Mixture
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.recipe.targets import TargetWalk
    from hubextrap.trajectory import Checkpoint

HORIZONS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Where a walk looks, as far as it is to look: (step − last) / (last − first)."""
SAMPLES = 4
"""Answers to each prompt of which the right ones are kept."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A recipe whose target steps are known."""

    recipe: Recipe
    report: WalkReport | None = None
    """None where the recipe names its steps."""
    place: Path | None = None
    """Where what was measured lies, until the merge that follows is settled."""

    @property
    def addition(self) -> Addition:
        """What the walk adds to the outputs."""
        if self.report is None:
            return Addition()
        files = {
            JSON_FILE: f"{self.report.model_dump_json(indent=2)}\n".encode(),
            TEXT_FILE: walk_markdown(self.report).encode(),
        }
        if drawing_problem() is None:
            files[PICTURE_FILE] = walk_picture(self.report)
        return Addition(files, {"walk": self.report.parameters()}, (walk_sentence(self.report),))


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a walk will do, as far as no weight has to be read for it."""

    walk: TargetWalk
    questions: Questions
    recipes: tuple[Recipe, ...]
    """One for each step, in their order."""
    left_out: tuple[LeftOut, ...]

    @property
    def samples(self) -> int | None:
        """Answers to each prompt; None is one that is greedy."""
        default = SAMPLES if self.walk.chosen_by == "correct_answers" else None
        return default if self.walk.samples is None else self.walk.samples

    @property
    def answers(self) -> int:
        """That are drawn from one model."""
        return self.questions.count * (self.samples or 1)

    def notes(self) -> tuple[str, ...]:
        """What it costs, and where it looks."""
        places = len(self.recipes) + 1
        tokens = self.questions.most_tokens * (self.samples or 1)
        drawn = f"{self.answers:,} answers of at most {tokens:,} tokens in all"
        if self.walk.chosen_by == "score":
            cost = f"the walk draws {drawn} at each of {places} steps: at most {tokens * places:,} tokens"
        else:
            cost = (
                f"the walk draws {drawn} from the last checkpoint, and scores them at {places} steps: at "
                f"most {tokens * places:,} tokens"
            )
        steps = ", ".join(str(recipe.target_steps[0]) for recipe in self.recipes)
        left_out = (f"the walk leaves step {each.step} out: {each.reason}" for each in self.left_out)
        return (cost, f"the walk looks at the last checkpoint and at steps {steps}", *left_out)


def look_ahead(recipe: Recipe, run: Run) -> Ahead | None:
    """What the recipe's walk will do; None where it names its steps.

    Raises:
        RecipeError: there is nothing to look at. MethodError, StepError: no step can be predicted.
        MissingExtra, EvaluationError: what is asked cannot be.
    """
    walk = recipe.walk
    if walk is None:
        return None
    if {rule.method for rule in recipe.rules} == {"persistence"}:
        raise RecipeError("merge_method persistence predicts nothing, so there is no step to choose")
    far = run.settled(recipe.farthest)
    (end,) = run.target_times(far)
    if end <= run.times[-1]:
        last = run.trajectory.last.step
        raise RecipeError(f"parameters.target_step.up_to: is not beyond the last checkpoint, step {last}")
    ways = {way.target_steps: way for way in (*_nearer(recipe, run, end), far)}
    ways.pop(run.steps[-1:], None)
    recipes, left_out = _those_that(list(ways.values()), lambda one: _check(one, run))
    require("logits", "a walk")
    return Ahead(walk, questions_of(walk, recipe.evaluate), recipes, left_out)


def choose_step(
    recipe: Recipe,
    run: Run,
    settings: MergeOptions,
    *,
    out: Path | None,
    targets: Sequence[PushTarget],
    scoring: Scoring | None = None,
) -> Chosen:
    """The recipe with the step that its walk chooses; itself where it names its steps.

    What was measured stays in a place of its own until the merge that follows is settled: the same call goes
    on where it was stopped, and after it was stopped behind the walk measures nothing again.

    Args:
        out, targets: where the prediction will go, checked before anything is measured.

    Raises:
        HubExtrapError: as `look_ahead` and `prepare`; a model cannot be loaded, or cannot answer.
    """
    ahead = look_ahead(recipe, run)
    if ahead is None:
        return Chosen(run.settled(recipe))
    scoring = scoring or Scoring()
    scoring = Scoring(chosen_device(scoring.device), scoring.dtype)
    place = walk_place(recipe, out, targets)
    if recipe.space == "weights":
        far = ahead.recipes[-1]

        def check(prepared: Prepared) -> None:
            refuse([*problems_beforehand(prepared, out, targets), *walk_problems(ahead, prepared, place)])

        prepare(far, run, settings, read_weights=False, check=check)
    for line in ahead.notes():
        run.progress.say(line)
    with held_place(place, str(out or place.name), run.progress, like=out):
        walking = _Walking(recipe, ahead, run, settings, scoring, place)
        report = walking.report()
        shutil.rmtree(place / "predictions", ignore_errors=True)
    chosen = {one.target_steps[0]: one for one in ahead.recipes}.get(report.chosen)
    return Chosen(_staying(recipe, report) if chosen is None else chosen, report, place)


def walk_problems(ahead: Ahead, prepared: Prepared, place: Path) -> list[HubExtrapError]:
    """What would keep the predictions that are measured from lying beside the output."""
    sizes = output_sizes(prepared.plan, prepared.beside.files)
    names = [f"{recipe.target_steps[0]:064}" for recipe in ahead.recipes]
    try:
        check_place(place)
        if not place.exists():  # what lies there takes its part of the room
            check_output(place / "merged", dict.fromkeys(names, sizes))
    except HubExtrapError as error:
        return [error]
    return []


def _nearer(recipe: Recipe, run: Run, end: float) -> list[Recipe]:
    """The recipe for each horizon of the grid before the time ``end``, in the unit that that was given in."""
    near = run.horizon_at(end)
    horizons = [horizon for horizon in HORIZONS if near is not None and horizon < near]
    if recipe.walk is None or isinstance(recipe.walk.up_to, int):
        return [recipe.towards(run.target_at(horizon, "the walk")) for horizon in horizons]
    counts = (round(horizon * (run.times[-1] - run.times[0])) for horizon in horizons)
    targets = [FullRateTarget(full_rate_steps=(count,)) for count in counts if count]
    return [run.settled(recipe.towards({"target_step": (), "target": target})) for target in targets]


def _check(recipe: Recipe, run: Run) -> None:
    for rule in recipe.rules:
        rule.check(run.times, run.target_times(recipe))


def _those_that(
    candidates: Sequence[Recipe], check: Callable[[Recipe], object]
) -> tuple[tuple[Recipe, ...], tuple[LeftOut, ...]]:
    """Those whose target their method can predict, and the others' steps.

    Raises:
        MethodError, StepError: it can predict none.
    """
    recipes, left_out = [], []
    refusal: HubExtrapError | None = None
    for one in candidates:
        try:
            check(one)
        except (MethodError, StepError) as error:
            refusal = refusal or error
            left_out.append(LeftOut(step=one.target_steps[0], reason=str(error)))
        else:
            recipes.append(one)
    if not recipes and refusal is not None:
        raise refusal
    return tuple(recipes), tuple(left_out)


def _staying(recipe: Recipe, report: WalkReport) -> Recipe:
    """The last checkpoint itself as a prediction."""
    stay = {"merge_method": "persistence", "parameters": Parameters(target_step=(report.chosen,))}
    return recipe.farthest.model_copy(update=stay)


@dataclass
class _Walking:
    """One walk, with one model in memory at a time."""

    recipe: Recipe
    ahead: Ahead
    run: Run
    settings: MergeOptions
    scoring: Scoring
    folder: Path

    @cached_property
    def kept(self) -> Kept:
        """What was measured."""
        measured = self.folder / "measured"
        measured.mkdir(exist_ok=True)
        return Kept(measured)

    @cached_property
    def pins(self) -> list[str]:
        """What stands for each checkpoint."""
        return [pin_of(checkpoint) for checkpoint in self.run.trajectory.checkpoints]

    @cached_property
    def last(self) -> LastAnswers:
        """What is asked of the last checkpoint and, by score, of each prediction."""
        questions, samples, seed = self.ahead.questions, self.ahead.samples, self.ahead.walk.seed or 0
        checkpoint, progress = self.run.trajectory.last, self.run.progress
        return LastAnswers(
            checkpoint, self.pins[-1], questions, self.kept, self.scoring, progress, samples, seed
        )

    @cached_property
    def measured_with(self) -> str:
        """sha256 of all that a value depends on beside the weights."""
        return sha256_of_json([self.last.fingerprint, self.ahead.walk.chosen_by, self.recipe.space])

    def report(self) -> WalkReport:
        """Measure what has not been measured yet, and choose."""
        recipes, left_out = self._servable()
        points = [point_of(one, self.run, self.pins, self.measured_with) for one in recipes]
        by_score = self.ahead.walk.chosen_by == "score"
        answers, score = (None, None) if by_score else self._answers()
        values = self._values(points, answers)
        horizons = [self.run.horizon_at(*self.run.target_times(point.recipe)) for point in points]
        steps = [self.run.steps[-1], *(point.grid.step for point in points)]
        curve = tuple(
            WalkPoint(step=step, horizon=horizon, value=value)
            for step, horizon, value in zip(steps, (0.0, *horizons), values, strict=True)
        )
        best = best_of(curve)
        chosen = next((point for point in points if point.grid.step == best.step), None)
        return WalkReport(
            by=self.ahead.walk.chosen_by,
            up_to=self.run.settled(self.recipe.farthest).target_steps[0],
            prompts=self.ahead.questions.count,
            answers=self.ahead.answers if answers is None else len(answers.answers),
            answer_tokens=0 if answers is None else answers.tokens,
            curve=curve,
            left_out=(*self.ahead.left_out, *left_out),
            chosen=best.step,
            method="persistence" if chosen is None else self.recipe.merge_method,
            score_of_last=score,
            score_of_chosen=score if score is None or chosen is None else self._score(chosen),
        )

    def _servable(self) -> tuple[tuple[Recipe, ...], tuple[LeftOut, ...]]:
        """Those steps that the method can predict from these weights, and the other ones."""
        recipes = self.ahead.recipes
        if self.recipe.space == "logits":
            return _those_that(recipes, self._mixture)
        if not needs_scan(self.recipe):
            return recipes, ()
        with suppress(MethodError):  # it is told below
            prepare(recipes[0], self.run, self.settings)  # which reads the weights once
        run, told = self.run, self.run.progress
        run.progress = SilentProgress()  # what is to be said of a step is said of the chosen one
        try:
            return _those_that(recipes, lambda one: fit_rules(one, run, run.layouts, run.known_table()))
        finally:
            run.progress = told

    def _mixture(self, recipe: Recipe) -> Mixture:
        return recipe_mixture(recipe, run=self.run)

    def _answers(self) -> tuple[OwnAnswers, float | None]:
        """The last checkpoint's answers, and the share of its samples that are right, if that was asked."""
        answers, grades = self.last.draw()
        if grades is None:
            return answers, None
        right = [grade > 0.5 for grade in grades]
        if not any(right):
            raise EvaluationError(
                f"none of the last checkpoint's {len(right)} answers is right, so there are none whose "
                "likelihood could be followed; take more --samples or other prompts, or choose by own_answers"
            )
        return answers.only(right), fmean(grades)

    def _values(self, points: Sequence[Point], answers: OwnAnswers | None) -> list[float]:
        """By which a step is chosen: of the last checkpoint, then of each point."""
        last = self.run.trajectory.last
        keys = [sha256_of_json([self.measured_with, self.pins[-1], "last"]), *(point.key for point in points)]
        missing = [key for key in keys if self.kept.get(key) is None]
        if len(missing) < len(keys):
            self.run.progress.say(f"{len(keys) - len(missing)} of {len(keys)} steps were measured before")
        making = self._making([point for point in points if point.key in missing])
        if self.recipe.space == "weights":
            making.merge()
        tokens = "" if answers is None else f", {len(missing) * answers.tokens:,} tokens"
        each = self.ahead.answers if answers is None else len(answers.answers)
        with self._stage(f"walk{tokens}", len(missing) * each) as stage:
            for key, point in zip(keys, (None, *points), strict=True):
                if key in missing:
                    model = self.last.load(last if point is None else self._model_of(point, making))
                    value = self._value(model, answers, stage.advance)
                    del model
                    if point is None:
                        check_unchanged(last, self.pins[-1])
                    self.kept.put(key, {"value": value})
        return [float(self.kept.get(key)["value"]) for key in keys]

    def _value(
        self, model: Any, answers: OwnAnswers | None, advance: Callable[[int], None] | None = None
    ) -> float:
        if answers is not None:
            return self.last.logprob_under(model, answers, advance)
        drawn = self.last.drawn_from(model, advance)
        return fmean(self.ahead.questions.grades(drawn, self.last.tokenizer))

    def _score(self, point: Point) -> float:
        """The share of right answers among as many samples of the chosen prediction."""
        key = sha256_of_json([point.key, "score"])
        if self.kept.get(key) is None:
            making = self._making([point])
            if self.recipe.space == "weights":
                making.merge()
            model = self.last.load(self._model_of(point, making))
            self.kept.put(key, {"value": self._value(model, None)})
        return float(self.kept.get(key)["value"])

    def _making(self, points: Sequence[Point]) -> Making:
        far = self.ahead.recipes[-1]
        return Making(far, self.run, self.settings, self.folder, self.pins, points)

    def _model_of(self, point: Point, making: Making) -> Checkpoint | Mixture:
        return self._mixture(point.recipe) if self.recipe.space == "logits" else making.model_of(point)

    def _stage(self, label: str, total: int) -> Any:
        return self.run.progress.stage(label, total, "answers")
