"""`walk`: predict as far as the model's own answers go along, and no farther."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from pydantic import ValidationError

from hubextrap.api.answering import Scoring
from hubextrap.api.choosing import choose_step
from hubextrap.api.merging import Prediction, destinations, make
from hubextrap.api.output import check_output, write_files
from hubextrap.api.planning import recipe_push_targets
from hubextrap.api.preparing import MergeOptions, merge_options
from hubextrap.api.staging import held_place
from hubextrap.durable.atomic import writing
from hubextrap.durable.places import REMEDY, remove_marked
from hubextrap.errors import RecipeError
from hubextrap.given import check_names, optional_path, recipe_of
from hubextrap.hub.target import push_targets
from hubextrap.logits import recipe_mixture
from hubextrap.logits.manifest import MANIFEST_FILE, write_manifest
from hubextrap.notebooks import one_line
from hubextrap.opening import Run
from hubextrap.progress import Progress, SilentProgress
from hubextrap.recipe.targets import TargetWalk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from hubextrap.clocks import ClockChoice
    from hubextrap.evaluation.walk_report import WalkReport
    from hubextrap.hub import PushTarget
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan


class Walking(TypedDict, total=False):
    """What a walk asks and how, as a recipe's ``target_step`` has it; where the models that answer run."""

    tasks: Sequence[str]
    include_path: Sequence[str | Path]
    by: Literal["own_answers", "correct_answers", "score"]
    format: Literal["exact", "math"]
    samples: int
    max_tokens: int
    limit: int
    seed: int
    apply_chat_template: bool
    device: str
    dtype: str
    clock: ClockChoice
    """What time is counted by, instead of what the recipe says."""


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What `walk` found and made."""

    walk: WalkReport
    prediction: Prediction | None
    """The predicted model, or the last checkpoint's where that is best; None with ``space: logits``."""
    folder: Path | None
    """Where it lies on disk, or what says how logits are mixed."""

    def __repr__(self) -> str:
        return one_line(self, f"step {self.walk.chosen}", "" if self.folder is None else str(self.folder))


def walk(
    recipe: Recipe | Path | str,
    prompts: Path | str | None = None,
    *,
    out: Path | str | None = None,
    push: PushTarget | str | Sequence[PushTarget | str] = (),
    settings: MergeOptions | None = None,
    scan: Scan | Path | str | None = None,
    progress: Progress | None = None,
    **how: Unpack[Walking],
) -> WalkResult:
    """Look along the prediction up to the recipe's target step, choose a step there, and predict that.

    The last checkpoint answers the prompts once. Its answers are scored under the prediction of each step of
    a grid, and the step is chosen where they are likeliest. What is written is what `merge` makes of the
    recipe with that target step; where the last checkpoint itself is best, that one, by ``persistence``.

    A walk that was stopped, by whatever, goes on where it was when it is called again alike.

    Args:
        recipe: it, or its file; its target step is how far to look; or it says itself how to walk.
        prompts: a file with a JSON object per line, with the field ``question`` or ``prompt``; without it and
            ``tasks``, the problems of the recipe's evaluate section.
        out: the folder to write: the predicted model, and ``walk.json``, ``walk.md`` and a picture beside it.
        push: where it goes instead, or also; the recipe's push section if both are left out.
        scan: of the recipe's checkpoints, or its file: what it knows is not read again.
        how: ``tasks`` take the place of prompts; the rest as in a recipe's ``target_step``, and ``device``
            and ``dtype`` of the models that answer.

    Raises:
        RecipeError: what is asked for does not go together, or has no effect.
        HubExtrapError: see `merge`; a model cannot be loaded, or cannot answer.
    """
    check_names("walk", how, Walking)
    progress, settings = progress or SilentProgress(), merge_options(settings)
    scoring = Scoring(**{name: how.pop(name) for name in ("device", "dtype") if name in how})
    recipe, out = recipe_of(recipe), optional_path("out", out)
    prompts = optional_path("prompts", prompts)
    recipe = _with_walk(recipe.with_clock(how.pop("clock", None)), prompts, dict(how))
    if recipe.space == "logits":
        with Run.of(recipe, settings.reading, scan=scan, progress=progress) as run:
            return _mixed(recipe, run, settings, out, push_targets(push), scoring)
    targets = destinations(recipe, out, push)
    with Run.of(recipe, settings.reading, scan=scan, progress=progress) as run:
        if out is None and not targets:
            targets = recipe_push_targets(run.settled(recipe.farthest))
        made = make(recipe, run, settings, out=out, targets=targets, scoring=scoring)
    made.settle()
    (prediction,) = made.result.predictions
    assert made.result.walk is not None
    return WalkResult(made.result.walk, prediction, prediction.folder)


def _with_walk(recipe: Recipe, prompts: Path | str | None, how: dict[str, Any]) -> Recipe:
    """The recipe with all that was asked for in it."""
    given = [*(["prompts"] if prompts is not None else []), *how]
    stated: dict[str, Any] = {}
    if recipe.walk is not None:
        stated = {name: getattr(recipe.walk, name) for name in recipe.walk.model_fields_set}
        if not given:
            return recipe
        twice = (
            given if "prompts" in stated or "tasks" in stated else [name for name in given if name in stated]
        )
        if twice:
            raise RecipeError(
                f"{twice[0]} has no effect: the recipe's target_step says how to walk; leave it out, or "
                "write a plain step there, up to which to look"
            )
    elif recipe.target_count > 1:
        raise RecipeError(f"a walk looks up to one target, and the recipe has {recipe.target_count}")
    if prompts is not None:
        how["prompts"] = str(prompts)
    for name in ("tasks", "include_path"):
        if name in how:
            given = how[name]
            how[name] = (str(given),) if isinstance(given, (str, Path)) else tuple(map(str, given))
    try:
        if not stated:
            stated["up_to"] = recipe.parameters.target or recipe.target_steps[0]
        target = TargetWalk(**stated | how)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        said = str(problem.get("ctx", {}).get("error", problem["msg"]))
        place = ".".join(str(part) for part in problem["loc"])
        raise RecipeError(f"{place}: {said}" if place else said) from error
    return recipe.towards({"target_step": target, "target": None})


def _mixed(
    recipe: Recipe,
    run: Run,
    settings: MergeOptions,
    out: Path | str | None,
    push: Sequence[PushTarget],
    scoring: Scoring,
) -> WalkResult:
    """A walk along a mixture of logits: what is written says how they are mixed."""
    if push:
        raise RecipeError("space: logits writes no weights; leave --push out")
    out = None if out is None else Path(out)
    if out is not None:
        check_output(out, {"": {MANIFEST_FILE: 0}})
    chosen = choose_step(recipe, run, settings, out=out, targets=(), scoring=scoring)
    assert chosen.report is not None
    assert chosen.place is not None
    with held_place(chosen.place, str(out or chosen.place.name), run.progress, like=out):
        if out is not None:
            made = chosen.place / "mixture"
            shutil.rmtree(made, ignore_errors=True)
            with writing(out, REMEDY):
                made.mkdir()
            write_files(made, chosen.addition.files)
            write_manifest(recipe_mixture(chosen.recipe, run=run), made, home=out)
            with writing(out, REMEDY):
                made.replace(out)
        remove_marked(chosen.place)
    return WalkResult(chosen.report, None, out)
