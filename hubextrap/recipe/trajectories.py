"""``trajectory``: which checkpoints a recipe observes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from hubextrap.recipe.parts import AsTuple, NamesAClock, OneOrMoreSteps, RecipeSection, Step, Text
from hubextrap.recipe.tensor_names import TensorNames
from hubextrap.step_names import step_in_reference


class StepSelection(RecipeSection):
    """``trajectory.steps``: which of the checkpoints in the repo are observed."""

    pattern: str | None = None
    """How their names are built, with ``{step}`` for the number; found by itself when None."""
    series: str | None = None
    """Which series, as `hubextrap steps` lists them, when the repo holds more than one."""
    min: Step | None = None
    max: Step | None = None
    only: OneOrMoreSteps | None = None
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The step is the number in the name times this."""

    @field_validator("pattern")
    @classmethod
    def _pattern_holds_step(cls, value: str | None) -> str | None:
        if value is not None and value.count("{step}") != 1:
            raise ValueError("needs {step} exactly once, where the number stands, as in 'step_{step}'")
        return value

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> StepSelection:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class CheckpointEntry(RecipeSection):
    """One checkpoint of an explicit list."""

    model: Text
    step: Step
    """Where it is left out, the one that the model's name says."""

    @model_validator(mode="before")
    @classmethod
    def _step_of_its_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("model"), str) or "step" in value:
            return value
        said = step_in_reference(value["model"])
        if said is None and value.keys() == {"model"}:
            raise ValueError(
                f"no step for {value['model']}, and its name says none; write it: {{model: …, step: 100}}"
            )
        return value if said is None else {**value, "step": said.step}


class TrajectorySection(RecipeSection):
    """``trajectory``: the observed checkpoints, found in a repo or listed one by one."""

    repo: Text | None = None
    checkpoints: Annotated[tuple[CheckpointEntry, ...], AsTuple] | None = None
    steps: StepSelection = StepSelection()
    base: Text | None = None
    """The checkpoint of step 0, when it lives elsewhere; of adapters, the model that they belong to."""
    clock: Annotated[str | dict[str, Any], NamesAClock] = "auto"
    """``auto``, ``steps``, ``learning_rate``, a file of rates, or a schedule with its parameters."""
    tensors: TensorNames | None = None
    """What to do where the checkpoints do not hold the same tensors by name."""

    @model_validator(mode="after")
    def _one_way(self) -> TrajectorySection:
        if (self.repo is None) == (self.checkpoints is None):
            raise ValueError("give either repo, to find the checkpoints there, or checkpoints, to list them")
        if self.checkpoints is not None:
            if not self.checkpoints:
                raise ValueError("checkpoints is empty; list at least one")
            if self.steps != StepSelection():
                raise ValueError("steps goes with repo; with checkpoints, list only the ones to use")
        return self
