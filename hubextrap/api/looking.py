"""What a walk will do, as far as no weight has to be read for it: what it asks, where it looks, the cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubextrap.api.outlook import check_sayable
from hubextrap.api.output import check_output, output_sizes
from hubextrap.durable.places import check_place
from hubextrap.errors import HubExtrapError, MethodError, RecipeError, StepError
from hubextrap.evaluation.asking import Questions, questions_of
from hubextrap.evaluation.walk_report import LeftOut
from hubextrap.extras import require
from hubextrap.recipe.targets import FullRateTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hubextrap.api.preparing import Prepared
    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.recipe.targets import TargetWalk

HORIZONS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Where a walk looks, as far as it is to look: (step − last) / (last − first)."""
SAMPLES = 4
"""Answers to each prompt of which the right ones are kept."""


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

    @property
    def at_peak_rate(self) -> bool:
        """Whether the steps behind the last checkpoint are full-rate steps."""
        return isinstance(self.walk.up_to, FullRateTarget)

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
        rate = " at the peak rate" if self.at_peak_rate else ""
        return (cost, f"the walk looks at the last checkpoint and at steps {steps}{rate}", *left_out)

    def problems(self, prepared: Prepared, place: Path) -> list[HubExtrapError]:
        """What would keep the predictions that are measured from lying in a place of their own."""
        sizes = output_sizes(prepared.plan, prepared.beside.files)
        names = [f"{recipe.target_steps[0]:064}" for recipe in self.recipes]
        try:
            check_place(place)
            if not place.exists():  # what lies there takes its part of the room
                check_output(place / "merged", dict.fromkeys(names, sizes))
        except HubExtrapError as error:
            return [error]
        return []


def look_ahead(recipe: Recipe, run: Run, *, force: bool) -> Ahead | None:
    """What the recipe's walk will do; None where it names its steps.

    Args:
        force: of `MergeOptions`.

    Raises:
        RecipeError: there is nothing to look at; ``force`` has no effect.
        MethodError, StepError: no step can be predicted.
        MissingExtra, EvaluationError: what is asked cannot be.
        CheckpointError: the last checkpoint, which answers, cannot be loaded.
    """
    walk = recipe.walk
    if walk is None:
        return None
    if force:
        raise RecipeError(
            "--force (force=True of MergeOptions) has no effect on a walk, which looks beyond what the past "
            "can rehearse in any case; leave it out"
        )
    if {rule.method for rule in recipe.rules} == {"persistence"}:
        raise RecipeError("merge_method persistence predicts nothing, so there is no step to choose")
    far = run.settled(recipe.farthest)
    (end,) = run.target_times(far)
    if end <= run.times[-1]:
        last = run.trajectory.last.step
        raise RecipeError(f"parameters.target_step.up_to: is not beyond the last checkpoint, step {last}")
    ways = {way.target_steps: way for way in (*_nearer(recipe, run, end), far)}
    ways.pop(run.steps[-1:], None)
    recipes, left_out = those_that(list(ways.values()), lambda one: _check(one, run))
    require("logits", "a walk")
    questions = questions_of(walk, recipe.evaluate)
    from hubextrap.logits.loading import check_loadable  # once that is known to be there

    check_loadable(run.trajectory.last, chat=questions.chat, bases=run.bases)
    return Ahead(walk, questions, recipes, left_out)


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
    check_sayable(recipe, run)


def those_that(
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
