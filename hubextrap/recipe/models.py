"""The sections of a recipe as frozen models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from hubextrap.digests import sha256_of_json
from hubextrap.errors import RecipeError
from hubextrap.methods import Rule
from hubextrap.recipe.fits import FitSection
from hubextrap.recipe.outputs import OutputSection
from hubextrap.recipe.parts import AsTuple, OneOrMoreTexts, RecipeSection, Text, number_or
from hubextrap.recipe.problems import NO_TARGET
from hubextrap.recipe.targets import FullRateTarget, Target, TargetWalk
from hubextrap.recipe.trajectories import TrajectorySection
from hubextrap.recipe.yaml_nodes import dump_yaml

if TYPE_CHECKING:
    from hubextrap.clocks import ClockChoice

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DAMPS_NOTHING = "damping has no effect on persistence, which is the last checkpoint already; leave it out"
OutDtype = Literal["float32", "bfloat16", "float16"]


def _computes_in_float32(value: str) -> str:
    if value != "float32":
        raise ValueError(
            f"must be float32, not {value!r}: in a shorter format the coefficients no longer sum to 1; "
            "out_dtype says how the result is stored"
        )
    return value


def repo_id(remedy: str) -> AfterValidator:
    """Takes owner/name; ``remedy`` ends the message about anything else."""

    def check(value: str) -> str:
        if not REPO_ID.fullmatch(value):
            raise ValueError(f"must be owner/name, not {value!r}; {remedy}")
        return value

    return AfterValidator(check)


Damping = Annotated[
    float | Literal["auto"],
    number_or("auto", "a number from 0 (the last checkpoint) to 1", lambda value: 0 <= value <= 1),
]
ComputeDtype = Annotated[str, AfterValidator(_computes_in_float32)]


class MethodSection(RecipeSection):
    """A section whose keys beyond its own are parameters of its method."""

    model_config = ConfigDict(extra="allow")

    @property
    def method_parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class WholeRecipe(RecipeSection):
    """The top of a recipe."""

    version: Literal[1] = 1
    _text: str = PrivateAttr("")
    _file: str | None = PrivateAttr(None)

    @property
    def file(self) -> str | None:
        """What messages call what it was read from; None when it was not read from text."""
        return self._file

    @property
    def text(self) -> str:
        """The recipe as it was written; its canonical form when it was not read from text."""
        return self._text or self.to_yaml()

    def to_yaml(self) -> str:
        """The recipe in canonical form: our own sections, defaults left out."""
        content = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        if "target" in (said := content.get("parameters", {})):  # steps that it is settled at follow from it
            said.pop("target_step", None)
        return dump_yaml(_without_lists_of_one(content))


class TensorRule(MethodSection):
    """One entry of ``parameters.tensors``; keys beyond these are parameters of its method."""

    match: OneOrMoreTexts
    method: Text
    damping: Damping | None = None
    _called: str | None = PrivateAttr(None)
    """How the file writes it, where it is one of mergekit's filters."""


class Parameters(MethodSection):
    """``parameters``; keys beyond these are parameters of the recipe's method."""

    target_step: Target = ()
    target: FullRateTarget | None = None
    """In place of ``target_step``."""
    damping: Damping = 1.0
    max_expected_error: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """A prediction whose expected relative error is above it is an error; 1 is what doing nothing has."""
    fit: FitSection = "exact"
    """From which weights coefficients and expected errors follow: all, or so many of each tensor."""
    tensors: Annotated[tuple[TensorRule, ...], AsTuple] = ()

    @field_validator("target_step")
    @classmethod
    def _no_target_twice(cls, value: tuple[int, ...] | TargetWalk) -> tuple[int, ...] | TargetWalk:
        if not isinstance(value, TargetWalk) and len(set(value)) < len(value):
            raise ValueError("names a step twice")
        return value

    @model_validator(mode="after")
    def _has_a_target(self) -> Parameters:
        if self.target_step and self.target:
            raise ValueError("target_step and target both say what to predict; give one of them")
        if not self.target_step and not self.target:
            raise ValueError(
                f"{NO_TARGET}: say which step to predict, or give target: {{full_rate_steps: 100}}"
            )
        return self


class PushSection(RecipeSection):
    """``push``: where the prediction goes on the Hub."""

    repo: Annotated[Text, repo_id("the branch goes into push.revision")]
    revision: Text = "main"
    """A branch; ``{target_step}`` in it stands for the step."""
    private: bool = False
    create_pr: bool = False
    commit_message: Text | None = None

    def revision_for(self, target_step: int) -> str:
        """The branch for one target."""
        return self.revision.replace("{target_step}", str(target_step))


class EvaluateSection(RecipeSection):
    """``evaluate``: lm-eval tasks, and what the prediction is compared with."""

    tasks: OneOrMoreTexts = ()
    include_path: OneOrMoreTexts | None = None
    task_files: OneOrMoreTexts = ()
    """Files of problems, one JSON object per line."""
    format: Literal["exact", "math", "choice"] = "exact"
    """How answers to ``task_files`` are judged."""
    repeats: int | None = Field(default=None, ge=1)
    """Answers per problem, of hubextrap's own tasks and ``task_files``; so are the next two."""
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    against: OneOrMoreTexts = ("last",)
    """``last``, ``base``, ``target`` (the real checkpoint at the target step), or any reference."""
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    apply_chat_template: bool = False

    @model_validator(mode="after")
    def _has_tasks(self) -> EvaluateSection:
        if not self.tasks and not self.task_files:
            raise ValueError("names no task; give tasks, or task_files with problems of your own")
        if self.include_path is not None and not self.tasks:
            raise ValueError("include_path has no effect without tasks: it is where they are looked for")
        if self.format != "exact" and not self.task_files:
            raise ValueError("format has no effect without task_files: it says how their answers are judged")
        return self

    @field_validator("against")
    @classmethod
    def _known_or_reference(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a checkpoint twice")
        for entry in value:
            if entry not in ("last", "base", "target") and not re.search(r"[/:@.]", entry):
                raise ValueError(
                    f"{entry!r} is not last, base, target or a reference (owner/name@revision, ./folder)"
                )
        return value


class Recipe(WholeRecipe):
    """A whole recipe, checked. `load_recipe` and `parse_recipe` make one."""

    trajectory: TrajectorySection
    merge_method: Text
    parameters: Parameters
    space: Literal["weights", "logits"] = "weights"
    """What the coefficients mix: weights, into one model, or the checkpoints' logits, while decoding."""
    dtype: ComputeDtype = "float32"
    out_dtype: OutDtype | None = None
    """None: as in the last checkpoint."""
    output: OutputSection | None = None
    """Of a run of adapters: what is made of them."""
    push: PushSection | None = None
    evaluate: EvaluateSection | None = None

    @model_validator(mode="after")
    def _a_branch_each(self) -> Recipe:
        if self.push and self.target_count > 1 and "{target_step}" not in self.push.revision:
            raise ValueError(
                "push.revision needs {target_step} in it when there are several targets: 'step_{target_step}'"
            )
        return self

    @model_validator(mode="after")
    def _damps_something(self) -> Recipe:
        for index, own in enumerate(self.parameters.tensors):
            if own.method == "persistence" and own.damping not in (None, 1.0):
                raise ValueError(f"parameters.tensors[{index}].{_DAMPS_NOTHING}")
        if self.parameters.damping != 1.0 and {rule.method for rule in self.rules} == {"persistence"}:
            raise ValueError(f"parameters.{_DAMPS_NOTHING}")
        return self

    @model_validator(mode="after")
    def _logits_have_no_tensors(self) -> Recipe:
        if self.space == "weights":
            return self
        if self.parameters.tensors:
            raise ValueError(
                "parameters.tensors goes with space: weights; logits have one set of coefficients"
            )
        if self.parameters.max_expected_error is not None:
            raise ValueError("parameters.max_expected_error goes with space: weights, whose error it limits")
        if self.trajectory.tensors is not None:
            raise ValueError("trajectory.tensors goes with space: weights; logits have no tensors to name")
        for key in ("push", "out_dtype", "output"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} goes with space: weights; space: logits writes no weights, so remove it"
                )
        return self

    @property
    def walk(self) -> TargetWalk | None:
        """How the target step is to be chosen, where the recipe names none."""
        target = self.parameters.target_step
        return target if isinstance(target, TargetWalk) else None

    @property
    def target_steps(self) -> tuple[int, ...]:
        """
        Raises:
            RecipeError: the recipe names none, and whoever asks does not choose one.
        """
        target = self.parameters.target_step
        if isinstance(target, TargetWalk):
            raise RecipeError(
                "parameters.target_step is a section, but this command needs one step; `hubextrap "
                "walk`, `merge` and `run` choose one: write the step that they chose into the "
                "recipe"
            )
        return target

    @property
    def farthest(self) -> Recipe:
        """The same for what it looks up to; itself where it names its targets."""
        if self.walk is None:
            return self
        up_to = self.walk.up_to
        if isinstance(up_to, FullRateTarget):
            return self.towards({"target_step": (), "target": up_to})
        return self.towards({"target_step": (up_to,)})

    def towards(self, target: dict[str, Any]) -> Recipe:
        """The same for another target, as ``parameters`` say it; its text is its canonical form."""
        copy = self.model_copy(update={"parameters": self.parameters.model_copy(update=target)})
        copy._text = ""
        return copy

    def to_yaml(self) -> str:
        """As `WholeRecipe.to_yaml`; without the step that a target in full-rate steps is called by, and a fit
        of nothing."""
        bare: dict[str, Any] = {} if self.parameters.target is None else {"target_step": ()}
        if self.fit_sample is None:
            bare["fit"] = "exact"
        parameters = self.parameters.model_copy(update=bare)
        return WholeRecipe.to_yaml(self.model_copy(update={"parameters": parameters}))

    @property
    def target_count(self) -> int:
        """How many predictions there will be."""
        target = self.parameters.target
        if self.walk is not None:
            return 1
        return len(self.target_steps if target is None else target.full_rate_steps)

    def with_clock(self, clock: ClockChoice | None) -> Recipe:
        """The recipe with what was said elsewhere of its clock, if anything was."""
        if clock is None:
            return self
        return self.model_copy(update={"trajectory": self.trajectory.model_copy(update={"clock": clock})})

    def with_output(self, as_: str | None = None, rank: int | str | None = None) -> Recipe:
        """The recipe with what was said elsewhere of its output, if anything was, as canonical text.

        Args:
            as_: ``adapter`` or ``merged``; as the recipe says when None. ``merged`` drops the recipe's rank.
            rank: of an adapter, or ``exact``; as the recipe says when None.

        Raises:
            RecipeError: they do not go together, or with the recipe's space.
        """
        if as_ is None and rank is None:
            return self
        if self.space == "logits":
            raise RecipeError(
                "output (--as, --rank) goes with space: weights; space: logits writes no weights"
            )
        output = (self.output or OutputSection()).said(as_, rank)
        copy = self.model_copy(update={"output": output})
        copy._text = ""
        return copy

    def settled_at(self, last: int) -> Recipe:
        """The recipe with its target steps known: behind step ``last``, where they count from there."""
        target = self.parameters.target
        if target is None:
            return self
        steps = tuple(last + count for count in target.full_rate_steps)
        return self.model_copy(
            update={"parameters": self.parameters.model_copy(update={"target_step": steps})}
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Which tensors get which method: the rules of ``parameters.tensors``, then one for all the rest."""
        damping = self.parameters.damping
        special = tuple(
            Rule(
                own.match,
                own.method,
                own.method_parameters,
                damping if own.damping is None else own.damping,
                own._called,
            )
            for own in self.parameters.tensors
        )
        return (*special, Rule(("*",), self.merge_method, self.parameters.method_parameters, damping))

    @property
    def needs_scan(self) -> bool:
        """Whether the weights have to be read before the coefficients are known or may be used."""
        return self.parameters.max_expected_error is not None or any(
            rule.needs_gram_matrix for rule in self.rules
        )

    @property
    def fit_sample(self) -> int | None:
        """From how many weights of each tensor all follows that follows from weights; None: from all, or
        nothing does."""
        fit = self.parameters.fit
        return None if fit == "exact" or not self.needs_scan else fit

    def fingerprint(self) -> str:
        """sha256 of everything that decides the merged bytes, as hex; push and evaluate do not."""
        left_out = {"push", "evaluate", *(("output",) if self.output is None else ())}
        decisive = self.model_dump(mode="json", exclude=left_out, by_alias=True)
        if self.fit_sample is None:  # as it was before there were samples
            del decisive["parameters"]["fit"]
        if self.trajectory.tensors is None:  # and before names could be told
            del decisive["trajectory"]["tensors"]
        return sha256_of_json(decisive)


def one_by_one(recipe: Recipe) -> list[dict[str, Any]]:
    """For each target of a settled recipe, what of ``parameters`` says that target alone."""
    target = recipe.parameters.target
    if target is None:
        return [{"target_step": (step,)} for step in recipe.target_steps]
    both = zip(recipe.target_steps, target.full_rate_steps, strict=True)
    return [
        {"target_step": (step,), "target": FullRateTarget(full_rate_steps=(count,))} for step, count in both
    ]


def _without_lists_of_one(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_lists_of_one(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        if len(value) == 1 and key in ("target_step", "match", "full_rate_steps"):
            return value[0]
        return [_without_lists_of_one(inner) for inner in value]
    return value
