"""Targets that are no plain steps: full-rate steps, and a walk by which the step is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hubextrap.recipe.parts import OneOrMoreCounts, OneOrMoreSteps, OneOrMoreTexts, RecipeSection, Step, Text


class FullRateTarget(RecipeSection):
    """``parameters.target``: as if the rate had stayed at its peak behind the last checkpoint."""

    full_rate_steps: OneOrMoreCounts
    """How many updates at the peak rate, the last checkpoint's own state of the schedule left aside."""

    @field_validator("full_rate_steps")
    @classmethod
    def _none_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a number of steps twice")
        return value


_STEPS, _SECTION = "target steps", "a section"
TARGET_KINDS = (_STEPS, _SECTION)
"""What pydantic puts into the place of a problem in a target, beside the keys."""
UpTo = Annotated[
    Annotated[Step, Tag(_STEPS)] | Annotated[FullRateTarget, Tag(_SECTION)],
    Discriminator(lambda value: _SECTION if isinstance(value, (dict, FullRateTarget)) else _STEPS),
]


class TargetWalk(RecipeSection):
    """``parameters.target_step`` as a section: how far to look, and by what the step is chosen."""

    up_to: UpTo
    """A step, or full-rate steps from the last checkpoint."""
    by: Literal["own_answers", "correct_answers", "score"] | None = None
    """What is highest at the chosen step: the likelihood of the last checkpoint's greedy answers, or of those
    of its samples that are right; or the share of right answers. None: ``correct_answers`` if ``samples`` is
    given, else ``own_answers``."""
    prompts: Text | None = None
    """A file with a JSON object per line: ``question`` or ``prompt``, and ``answer`` where it is compared.
    Without it and ``tasks``: the problems of ``evaluate``."""
    tasks: OneOrMoreTexts = ()
    """lm-eval tasks and hubextrap's own, whose problems are put in the place of a file's."""
    include_path: OneOrMoreTexts | None = None
    format: Literal["exact", "math"] | None = None
    """How answers to ``prompts`` are judged; None: as ``evaluate`` says, or ``exact``."""
    samples: int | None = Field(default=None, ge=1)
    """Answers to each prompt, drawn at temperature 1."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of an answer; None: what the task says, or what the answers in the file ask for."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many prompts."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Of the samples."""
    apply_chat_template: bool = False

    @field_validator("up_to")
    @classmethod
    def _is_one(cls, value: int | FullRateTarget) -> int | FullRateTarget:
        if isinstance(value, FullRateTarget) and len(value.full_rate_steps) > 1:
            raise ValueError("names several numbers of full-rate steps; a walk looks up to one")
        return value

    @model_validator(mode="after")
    def _counts(self) -> TargetWalk:
        if self.prompts is not None and self.tasks:
            raise ValueError("give either prompts, a file with a JSON object per line, or tasks")
        if self.include_path is not None and not self.tasks:
            raise ValueError("include_path has no effect without tasks: it is where they are looked for")
        if self.format is not None and self.prompts is None:
            raise ValueError("format has no effect on tasks, which say how answers are judged")
        for key in ("samples", "format", "seed"):
            if getattr(self, key) is not None and self.chosen_by == "own_answers":
                raise ValueError(
                    f"{key} has no effect with own_answers, which are greedy and not judged; choose "
                    "by correct_answers or by score, or leave it out"
                )
        if self.seed is not None and self.samples is None and self.by == "score":
            raise ValueError("seed has no effect without samples: one answer is greedy")
        return self

    @property
    def chosen_by(self) -> Literal["own_answers", "correct_answers", "score"]:
        """``by``, or what it stands for."""
        return self.by or ("own_answers" if self.samples is None else "correct_answers")


Target = Annotated[
    Annotated[OneOrMoreSteps, Tag(_STEPS)] | Annotated[TargetWalk, Tag(_SECTION)],
    Discriminator(lambda value: _SECTION if isinstance(value, (dict, TargetWalk)) else _STEPS),
]
