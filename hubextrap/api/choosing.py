"""Choosing a target step by what the model can still do: a walk along the prediction.

The last checkpoint answers once. Its answers are scored under the recipe's prediction of each step of a grid,
and the step is chosen where they are likeliest; or answers are drawn and judged at each step.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hubextrap.api.answering import LastAnswers, Scoring
from hubextrap.api.beforehand import problems_beforehand, refuse
from hubextrap.api.fingerprint import check_unchanged, pin_of
from hubextrap.api.fitting import fit_rules
from hubextrap.api.grid import Kept, Making, Point, point_of
from hubextrap.api.looking import Ahead, look_ahead, those_that
from hubextrap.api.preparing import Addition, prepare
from hubextrap.api.staging import held_place, may_be_finished, remove_leftover, walk_place
from hubextrap.digests import sha256_of_json
from hubextrap.durable.places import remove_marked
from hubextrap.errors import EvaluationError, MethodError
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
from hubextrap.logits import recipe_mixture
from hubextrap.recipe import Parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hubextrap.api.preparing import MergeOptions, Prepared
    from hubextrap.evaluation.own_answers import OwnAnswers
    from hubextrap.hub import PushTarget
    from hubextrap.logits import Mixture
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import Checkpoint


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
    ahead = look_ahead(recipe, run, force=settings.force)
    if ahead is None:
        return Chosen(run.settled(recipe))
    # what the past cannot rehearse, and what breaks, the answers judge
    settings = replace(settings, force=True, allow_non_finite=True)
    scoring = scoring or Scoring()
    scoring = Scoring(chosen_device(scoring.device), scoring.dtype)
    place = walk_place(recipe, out, targets)
    if out is not None and not may_be_finished(out):
        remove_leftover(out)
    if recipe.space == "weights":
        far = ahead.recipes[-1]

        def check(prepared: Prepared) -> None:
            refuse([*problems_beforehand(prepared, out, targets), *ahead.problems(prepared, place)])

        with run.unsaid():  # it may not be chosen
            prepare(far, run, settings, read_weights=False, check=check)
    for line in ahead.notes():
        run.progress.say(line)
    with held_place(place, str(out or place.name), run.progress, like=out):
        walking = _Walking(recipe, ahead, run, settings, scoring, place)
        try:
            report = walking.report()
        except BaseException:
            if any(place.glob("measured/*.json")):
                run.progress.say(f"{place}: what was measured is kept; run the same command again to go on")
            else:
                remove_marked(place)
            raise
        shutil.rmtree(place / "predictions", ignore_errors=True)
    chosen = {one.target_steps[0]: one for one in ahead.recipes}.get(report.chosen)
    return Chosen(_staying(recipe, report) if chosen is None else chosen, report, place)


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
            checkpoint,
            self.pins[-1],
            questions,
            self.kept,
            self.scoring,
            progress,
            samples,
            seed,
            bases=self.run.bases,
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
        if by_score and not any(values):
            raise EvaluationError(
                f"none of {self.ahead.answers} answers at any of {len(values)} steps is right, so nothing "
                "tells the steps apart; take more samples or other prompts, see how answers are compared, or "
                "choose by own_answers"
            )
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
            at_peak_rate=self.ahead.at_peak_rate,
            prompts=self.ahead.questions.count,
            answers=self.ahead.answers if answers is None else len(answers.answers),
            answer_tokens=0 if answers is None else answers.tokens,
            curve=curve,
            left_out=(*self.ahead.left_out, *left_out),
            chosen=best.step,
            method="persistence" if chosen is None else self._methods(),
            score_of_last=score,
            score_of_chosen=score if score is None or chosen is None else self._score(chosen),
        )

    def _methods(self) -> str:
        """The recipe's, and those that it has for some tensors."""
        return ", ".join(dict.fromkeys(rule.method for rule in reversed(self.recipe.rules)))

    def _servable(self) -> tuple[tuple[Recipe, ...], tuple[LeftOut, ...]]:
        """Those steps that the method can predict from these weights, and the other ones."""
        recipes = self.ahead.recipes
        if self.recipe.space == "logits":
            return those_that(recipes, self._mixture)
        if not self.recipe.needs_scan:
            return recipes, ()
        run = self.run
        with run.unsaid():
            with suppress(MethodError):  # it comes again
                prepare(recipes[0], run, self.settings)  # which reads the weights once
            return those_that(recipes, lambda one: fit_rules(one, run, run.layouts, run.known_table(one)))

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
                "likelihood could be followed; take more samples or other prompts, or choose by own_answers"
            )
        return answers.only(right), fmean(grades)

    def _values(self, points: Sequence[Point], answers: OwnAnswers | None) -> list[float]:
        """By which a step is chosen: of the last checkpoint, then of each point."""
        last = self.run.trajectory.last
        keys = [sha256_of_json([self.measured_with, self.pins[-1], "last"]), *(point.key for point in points)]
        models = dict(zip(keys, (None, *points), strict=True))  # steps with the same coefficients are one
        missing = {key: point for key, point in models.items() if self.kept.get(key) is None}
        if len(missing) < len(models):
            self.run.progress.say(f"{len(models) - len(missing)} of {len(models)} steps were measured before")
        making = self._making([point for point in missing.values() if point is not None])
        if self.recipe.space == "weights":
            with self.run.unsaid():
                making.merge()
        tokens = "" if answers is None else f", {len(missing) * answers.tokens:,} tokens"
        each = self.ahead.answers if answers is None else len(answers.answers)
        with self._stage(f"walk{tokens}", len(missing) * each) as stage:
            for key, point in missing.items():
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
                with self.run.unsaid():
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
