"""A plain mergekit config with one of our methods, turned into a recipe.

Checked against the config of mergekit 0.1.5 (mergekit/config.py). A key is accepted when we do with it what
mergekit does; every other key of mergekit's is refused with the reason. Keys that mergekit does not know
(push, evaluate) are ours, and mergekit ignores them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hubextrap.errors import StepError
from hubextrap.recipe.fits import MergekitFit
from hubextrap.recipe.mergekit_models import ModelReference
from hubextrap.recipe.mergekit_programs import AS_IT_IS
from hubextrap.recipe.models import (
    ComputeDtype,
    EvaluateSection,
    OutDtype,
    Parameters,
    PushSection,
    Recipe,
)
from hubextrap.recipe.outputs import OutputSection
from hubextrap.recipe.parts import OF_KEYS, AsTuple, RecipeSection, Step, Text
from hubextrap.recipe.targets import TargetWalk
from hubextrap.recipe.trajectories import CheckpointEntry, TrajectorySection
from hubextrap.step_names import no_step, settled_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.recipe.models import TensorRule
    from hubextrap.recipe.yaml_nodes import Place

MARKS = ("models", "base_model", "slices", "modules")
"""Keys that only a mergekit config has at its top."""

REFUSED = {
    "tokenizer": f"the tokenizer is that of the last checkpoint; leave it out, or {AS_IT_IS}",
    "chat_template": f"the chat template is that of the last checkpoint; leave it out, or {AS_IT_IS}",
}


class ModelParameters(RecipeSection):
    """``models[].parameters``."""

    step: Step | None = None
    """What the model's name says when None."""


class ModelEntry(RecipeSection):
    """One of ``models``."""

    model: ModelReference
    parameters: ModelParameters | None = None


class MergekitParameters(Parameters):
    """``parameters``: numbers, as mergekit wants them."""

    fit: MergekitFit = "exact"

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
    base_model: ModelReference | None = None
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
    def _adapters_are_of_one_base(self) -> MergekitConfig:
        if (base := self._adapted) is None:
            return self
        entries: list[tuple[Place, ModelReference]] = [
            (("models", index, "model"), entry.model) for index, entry in enumerate(self.models)
        ]
        if self.base_model is not None:
            entries.append((("base_model",), self.base_model))
        problems = [
            (place, f"must be {base}, or an adapter of it as the others are, not {model}; {AS_IT_IS}")
            for place, model in entries
            if model.model != base
        ]
        if problems:
            raise _of_places(problems)
        return self

    @model_validator(mode="after")
    def _steps_are_known(self) -> MergekitConfig:
        problems: list[tuple[Place, str]] = []
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
            said = no_step(*(self.models[index].model.checkpoint for index in stepless))
            problems.append((("models", stepless[0]), said))
        problems = problems or [*self._base_problems(), *self._tokenizer_problems()]
        if problems:
            raise _of_places(problems)
        return self

    def _base_problems(self) -> list[tuple[Place, str]]:
        """What keeps the adapters' base from being their step 0, and nothing else."""
        base = self._adapted
        if base is None:
            return []
        alone = [step for model, step in self._listed() if model.lora is None]
        begun = [str(model) for model, step in self._listed() if model.lora is not None and step == 0]
        if alone and alone != [0]:
            return [(("models",), f"{base} alone is the untouched base, step 0; leave its step out")]
        if alone and begun:
            return [(("models",), f"step 0 is there twice: {base} and {begun[0]}")]
        if not alone and not begun:
            said = f"has to be {base}: the adapters' base is step 0 here, which a recipe names; or {AS_IT_IS}"
            return [(("base_model",), said)]
        return []

    def _tokenizer_problems(self) -> list[tuple[Place, str]]:
        last = max(self._listed(), key=lambda pair: pair[1])[0]
        of_whom = "last checkpoint" if last.lora is None else "base"
        if self.tokenizer_source in (None, last.model, str(last)):
            return []
        said = (
            f"{self.tokenizer_source!r}: the tokenizer is that of the {of_whom}; leave it out, or "
            f"name {last.model}; or {AS_IT_IS}"
        )
        return [(("tokenizer_source",), said)]

    @property
    def _adapted(self) -> str | None:
        """The base of the first adapter, where there is one."""
        named = [entry.model for entry in self.models] + ([self.base_model] if self.base_model else [])
        return next((model.model for model in named if model.lora is not None), None)

    def _step(self, model: ModelReference, stated: int | None) -> int:
        others = [entry.model.checkpoint for entry in self.models if entry.model != model]
        is_base = model == self.base_model or (model.lora is None and model.model == self._adapted)
        return settled_step(model.checkpoint, stated, others, is_base=is_base)

    def _listed(self) -> list[tuple[ModelReference, int]]:
        """The models with their steps, base_model first unless it is listed."""
        listed = [(entry.model, self._step(entry.model, _stated(entry))) for entry in self.models]
        if self.base_model is None or any(model == self.base_model for model, _ in listed):
            return listed
        return [(self.base_model, self._step(self.base_model, None)), *listed]

    def recipe(self, rules: tuple[TensorRule, ...] = ()) -> Recipe:
        """The same in our own sections, with the rules that its conditions say.

        Steps are the clock, as mergekit reads nothing beside the weights. It stores the result in ``dtype``
        when there is no ``out_dtype``, and makes a full model of adapters; so does this form.
        """
        base, stored = self._adapted, self.out_dtype or ("float32" if self.dtype else None)
        checkpoints = tuple(
            CheckpointEntry(model=model.checkpoint, step=step)
            for model, step in self._listed()
            if base is None or model.lora is not None
        )
        return Recipe(
            trajectory=TrajectorySection(checkpoints=checkpoints, base=base, clock="steps"),
            merge_method=self.merge_method,
            parameters=Parameters(**self.parameters.model_dump() | {"tensors": rules}),
            out_dtype=stored,
            output=None if base is None else OutputSection.model_validate({"as": "merged"}),
            push=self.push,
            evaluate=self.evaluate,
        )


def _of_places(problems: Sequence[tuple[Place, str]]) -> PydanticCustomError:
    said = "; ".join(problem for _, problem in problems)
    return PydanticCustomError(OF_KEYS, "{said}", {"said": said, "problems": list(problems)})


def _stated(entry: ModelEntry) -> int | None:
    return None if entry.parameters is None else entry.parameters.step
