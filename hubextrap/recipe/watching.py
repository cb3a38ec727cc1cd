"""The recipe of `hubextrap watch`: which run is followed, and what is done for each new checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hubextrap.errors import RecipeError
from hubextrap.foreign_data import first_problem
from hubextrap.methods import MAX_STEP
from hubextrap.recipe.commands import Command, check_command, check_placeholders
from hubextrap.recipe.models import PushSection, WholeRecipe
from hubextrap.recipe.parts import OneOrMoreTexts, RecipeSection, Step, Text
from hubextrap.recipe.trajectories import TrajectorySection

if TYPE_CHECKING:
    from collections.abc import Sequence

IN_THE_REVISION = ("target_step", "last_step")
"""Placeholders of ``watch.push.revision``: the predicted step, and the last one that was observed."""
COMMAND_SECONDS = 3600.0
Count = Annotated[int, Field(ge=1, le=MAX_STEP)]


class WatchTarget(RecipeSection):
    """``watch.predict``: how far ahead; the farthest that the past supports, where it is empty."""

    to: Step | None = None
    """A step; once it is reached, nothing is predicted any more."""
    horizon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """(target − last)/(last − first), on the clock."""
    ahead: Count | None = None
    """Steps behind the checkpoint."""

    @model_validator(mode="after")
    def _one_way(self) -> WatchTarget:
        if sum(one is not None for one in (self.to, self.horizon, self.ahead)) > 1:
            raise ValueError("to, horizon and ahead each say how far; give one of them")
        return self


def _true_is_empty(value: object) -> object:
    if value is True:
        return {}
    if value is False or not isinstance(value, dict):
        what = "true (the farthest step that the past supports), or one of {to: STEP}, {horizon: H}"
        raise ValueError(f"must be {what} and {{ahead: STEPS}}, not {value!r}")
    return value


class WatchEvaluateSection(RecipeSection):
    """``watch.evaluate``: what is measured of each prediction, beside the first and last checkpoints."""

    tasks: OneOrMoreTexts
    include_path: OneOrMoreTexts | None = None
    limit: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)


class WatchSection(RecipeSection):
    """``watch``: what is done for each new checkpoint."""

    predict: Annotated[WatchTarget, BeforeValidator(_true_is_empty)] | None = None
    walk: Text | None = None
    """A file of prompts, by whose answers the step is chosen, up to the one that ``predict`` says."""
    evaluate: WatchEvaluateSection | None = None
    push: PushSection | None = None
    """Where predictions go; without it they become folders."""
    shell: bool = False
    """Run ``command`` by ``/bin/sh -c``."""
    command: Command | None = None
    """Gets what happened as JSON on its standard input."""
    timeout: float = Field(default=COMMAND_SECONDS, gt=0, le=10**7, allow_inf_nan=False)
    """Seconds that ``command`` may take."""
    every: Count = 1
    """Only each so manyth new checkpoint."""
    since: Step | None = None
    """The first checkpoint for which something is done; the newest that is there at the start when None."""

    @field_validator("command")
    @classmethod
    def _can_be_run(
        cls, value: str | tuple[str, ...] | None, info: ValidationInfo
    ) -> str | tuple[str, ...] | None:
        if value is not None:
            check_command(value, info.data.get("shell", False), (), ())
        return value

    @field_validator("push")
    @classmethod
    def _known_placeholders(cls, value: PushSection | None) -> PushSection | None:
        if value is not None:
            check_placeholders(value.revision, IN_THE_REVISION)
        return value

    @model_validator(mode="after")
    def _what_they_go_with_is_there(self) -> WatchSection:
        said = self.model_fields_set
        of_predictions = [name for name in ("walk", "evaluate", "push") if name in said]
        if self.predict is None and of_predictions:
            raise ValueError(
                f"{of_predictions[0]} goes with predict, but nothing is predicted; add predict: true"
            )
        of_commands = [name for name in ("shell", "timeout") if name in said]
        if self.command is None and of_commands:
            raise ValueError(f"{of_commands[0]} goes with a command, but there is none")
        return self


class WatchRecipe(WholeRecipe):
    """A whole recipe of `hubextrap watch`, checked. `load_watch_recipe` makes one."""

    trajectory: TrajectorySection
    watch: WatchSection = WatchSection()

    @field_validator("trajectory")
    @classmethod
    def _can_grow(cls, value: TrajectorySection) -> TrajectorySection:
        if value.repo is None:
            raise ValueError("a list of checkpoints does not grow; give repo, where new ones will be found")
        if value.steps.only is not None:
            raise ValueError(
                "steps.only names steps, so no new one is taken; give min or max, or leave it out"
            )
        if value.tensors is not None:
            raise ValueError(
                "tensors goes with recipes of merges; watch compares checkpoints by the names that they "
                "have, and by those that are known to have changed"
            )
        return value

    @classmethod
    def of_run(
        cls,
        reference: str,
        *,
        pattern: str | None = None,
        series: str | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        steps: Sequence[int] | None = None,
        base: str | None = None,
        step_scale: float = 1.0,
    ) -> WatchRecipe:
        """The recipe that keeps a page of a run; which of its checkpoints, as `TrajectoryOptions` say.

        Raises:
            RecipeError: they make no selection.
        """
        selection = {
            "pattern": pattern,
            "series": series,
            "min": min_step,
            "max": max_step,
            "only": None if steps is None else tuple(steps),
            "scale": step_scale,
        }
        try:
            return cls.model_validate({"trajectory": {"repo": reference, "steps": selection, "base": base}})
        except ValidationError as error:
            raise RecipeError(first_problem(error)) from error

    def identity(self) -> dict[str, Any]:
        """Which run it is, as JSON values: what may not change between two calls with one folder."""
        section: dict[str, Any] = self.trajectory.model_dump(mode="json", exclude_defaults=True)
        if (steps := section.get("steps")) is not None:  # how far it goes may be said later
            steps.pop("max", None)
        return {key: value for key, value in section.items() if value not in ({}, None)}
