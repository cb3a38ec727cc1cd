"""A plain mergekit config with one of our methods, turned into a recipe.

Checked against the config of mergekit 0.1.5 (mergekit/config.py). A key is accepted when we do with it what
mergekit does; every other key of mergekit's is refused with the reason. Keys that mergekit does not know
(push, evaluate) are ours, and mergekit ignores them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hubextrap.recipe.models import (
    CheckpointEntry,
    ComputeDtype,
    EvaluateSection,
    OutDtype,
    Parameters,
    PushSection,
    Recipe,
    TrajectorySection,
)
from hubextrap.recipe.parts import AsTuple, RecipeSection, Step, Text
from hubextrap.recipe.targets import TargetWalk

MARKS = ("models", "base_model", "slices", "modules")
"""Keys that only a mergekit config has at its top."""

REFUSED = {
    "slices": "slices stack layers of several models, and a prediction has the layers of its run; use models",
    "modules": "a recipe predicts one language model; list its checkpoints in models",
    "tokenizer": "the tokenizer is that of the last checkpoint; leave it out",
    "chat_template": "the chat template is that of the last checkpoint; leave it out",
}


class ModelParameters(RecipeSection):
    """``models[].parameters``."""

    step: Step


class ModelEntry(RecipeSection):
    """One of ``models``."""

    model: Text
    parameters: ModelParameters | None = None


class MergekitParameters(Parameters):
    """``parameters``: numbers, as mergekit wants them."""

    @model_validator(mode="after")
    def _plain_numbers(self) -> MergekitParameters:
        if isinstance(self.target_step, TargetWalk):
            raise ValueError(
                "target_step: mergekit has no such section; give a step, or use a trajectory section"
            )
        if len(self.target_step) > 1:
            raise ValueError(
                "target_step: mergekit reads a list as a gradient over the layers; give one step, "
                "or use a trajectory section for several"
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
    base_model: Text | None = None
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
        for entry in self.models:
            if entry.parameters is None and entry.model != self.base_model:
                raise ValueError(
                    f"{entry.model} has no step; give it one: parameters: {{step: 100}} "
                    "(only base_model may go without, it is step 0)"
                )
        last = max(self.checkpoints(), key=lambda checkpoint: checkpoint.step).model
        if self.tokenizer_source not in (None, last):
            raise ValueError(
                f"tokenizer_source {self.tokenizer_source!r}: the tokenizer is that of the last checkpoint; "
                f"leave it out, or name {last}"
            )
        return self

    def checkpoints(self) -> tuple[CheckpointEntry, ...]:
        """The models with their steps, base_model first as step 0 unless it is listed with another one."""
        listed = [
            CheckpointEntry(model=entry.model, step=entry.parameters.step if entry.parameters else 0)
            for entry in self.models
        ]
        if self.base_model is None or any(entry.model == self.base_model for entry in listed):
            return tuple(listed)
        return (CheckpointEntry(model=self.base_model, step=0), *listed)

    def recipe(self) -> Recipe:
        """The same in our own sections.

        Steps are the clock, as mergekit reads nothing beside the weights. It stores the result in ``dtype``
        when there is no ``out_dtype``; so does this form.
        """
        stored = self.out_dtype or ("float32" if self.dtype else None)
        return Recipe(
            trajectory=TrajectorySection(checkpoints=self.checkpoints(), clock="steps"),
            merge_method=self.merge_method,
            parameters=Parameters(**self.parameters.model_dump()),
            out_dtype=stored,
            push=self.push,
            evaluate=self.evaluate,
        )
