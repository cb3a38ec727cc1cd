"""A plain mergekit config with one of our methods, turned into a recipe.

Checked against the config of mergekit 0.1.5 (mergekit/config.py). A key is accepted when we do with it what
mergekit does; every other key of mergekit's is refused with the reason. Keys that mergekit does not know
(push, evaluate) are ours, and mergekit ignores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from hubextrap.errors import StepError
from hubextrap.recipe.mergekit_programs import AS_IT_IS
from hubextrap.recipe.models import (
    ComputeDtype,
    EvaluateSection,
    OutDtype,
    Parameters,
    PushSection,
    Recipe,
)
from hubextrap.recipe.parts import OF_KEYS, AsTuple, RecipeSection, Step, Text
from hubextrap.recipe.targets import TargetWalk
from hubextrap.recipe.trajectories import CheckpointEntry, TrajectorySection
from hubextrap.step_names import no_step, settled_step

if TYPE_CHECKING:
    from hubextrap.recipe.models import TensorRule

MARKS = ("models", "base_model", "slices", "modules")
"""Keys that only a mergekit config has at its top."""

REFUSED = {
    "tokenizer": f"the tokenizer is that of the last checkpoint; leave it out, or {AS_IT_IS}",
    "chat_template": f"the chat template is that of the last checkpoint; leave it out, or {AS_IT_IS}",
}


def _of_one_model(value: object) -> object:
    """Refuse mergekit's other forms of a reference."""
    if isinstance(value, dict):
        raise ValueError(f"has to be text here, as in me/run@step_100; {AS_IT_IS}")
    if isinstance(value, str) and "+" in value and not Path(value).exists():
        raise ValueError(
            f"{value!r} puts an adapter on a model; merge it into the model first, and name that; {AS_IT_IS}"
        )
    return value


Model = Annotated[Text, BeforeValidator(_of_one_model)]


class ModelParameters(RecipeSection):
    """``models[].parameters``."""

    step: Step | None = None
    """What the model's name says when None."""


class ModelEntry(RecipeSection):
    """One of ``models``."""

    model: Model
    parameters: ModelParameters | None = None


class MergekitParameters(Parameters):
    """``parameters``: numbers, as mergekit wants them."""

    @model_validator(mode="after")
    def _plain_numbers(self) -> MergekitParameters:
        if isinstance(self.target_step, TargetWalk):
            raise ValueError(
                "target_step: mergekit has no such section; give a step, or use a trajectory section"
            )
        if self.target is not None:
            raise ValueError(
                "target: mergekit has no such parameter; use a trajectory section, or give a target_step"
            )
        if self.tensors:
            raise ValueError(
                "tensors: mergekit has no such parameter; use a trajectory section to have rules"
            )
        return self


class MergekitConfig(RecipeSection):
    """The top of the config."""

    version: int | None = None
    models: Annotated[tuple[ModelEntry, ...], AsTuple, Field(min_length=1)]
    base_model: Model | None = None
    merge_method: Text
    parameters: MergekitParameters
    dtype: ComputeDtype | None = None
    out_dtype: OutDtype | None = None
    tokenizer_source: Text | None = None
    push: PushSection | None = None
    evaluate: EvaluateSection | None = None

    @model_validator(mode="after")
    def _rounds_once(self) -> MergekitConfig:
        if self.out_dtype and self.dtype is None:
            raise ValueError(
                "out_dtype needs dtype: float32 beside it; without dtype mergekit rounds to the checkpoints' "
                "own dtype first"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_known(self) -> MergekitConfig:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        stepless: list[int] = []
        for index, entry in enumerate(self.models):
            try:
                self._step(entry.model, _stated(entry))
            except StepError as error:
                if _stated(entry) is None:
                    stepless.append(index)
                else:
                    problems.append((("models", index, "parameters", "step"), str(error)))
        if stepless:
            said = no_step(*(self.models[index].model for index in stepless))
            problems.append((("models", stepless[0]), said))
        if problems:
            said = "; ".join(problem for _, problem in problems)
            raise PydanticCustomError(OF_KEYS, "{said}", {"said": said, "problems": problems})
        last = max(self.checkpoints(), key=lambda checkpoint: checkpoint.step).model
        if self.tokenizer_source not in (None, last):
            what = (
                f"{self.tokenizer_source!r}: the tokenizer is that of the last checkpoint; leave it out, or "
                f"name {last}; or {AS_IT_IS}"
            )
            raise PydanticCustomError(
                OF_KEYS, "{said}", {"said": what, "problems": [("tokenizer_source", what)]}
            )
        return self

    def _step(self, model: str, stated: int | None) -> int:
        others = [entry.model for entry in self.models if entry.model != model]
        return settled_step(model, stated, others, is_base=model == self.base_model)

    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        """The models with their steps, base_model first unless it is listed."""
        listed = [
            CheckpointEntry(model=entry.model, step=self._step(entry.model, _stated(entry)))
            for entry in self.models
        ]
        if self.base_model is None or any(entry.model == self.base_model for entry in listed):
            return tuple(listed)
        return (CheckpointEntry(model=self.base_model, step=self._step(self.base_model, None)), *listed)

    def recipe(self, rules: tuple[TensorRule, ...] = ()) -> Recipe:
        """The same in our own sections, with the rules that its conditions say.

        Steps are the clock, as mergekit reads nothing beside the weights. It stores the result in ``dtype``
        when there is no ``out_dtype``; so does this form.
        """
        stored = self.out_dtype or ("float32" if self.dtype else None)
        return Recipe(
            trajectory=TrajectorySection(checkpoints=self.checkpoints(), clock="steps"),
            merge_method=self.merge_method,
            parameters=Parameters(**self.parameters.model_dump() | {"tensors": rules}),
            out_dtype=stored,
            push=self.push,
            evaluate=self.evaluate,
        )


def _stated(entry: ModelEntry) -> int | None:
    return None if entry.parameters is None else entry.parameters.step
