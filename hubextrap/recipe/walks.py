"""A target step that is to be chosen: how far to look, what to ask, and by what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from hubextrap.recipe.parts import OneOrMoreSteps, OneOrMoreTexts, RecipeSection, Step, Text


class TargetWalk(RecipeSection):
    """``parameters.target_step`` as a section: how far to look, and by what the step is chosen."""

    up_to: Step
    by: Literal["own_answers", "correct_answers", "score"] | None = None
    """What is highest at the chosen step: the likelihood of the last checkpoint's greedy answers, or of those
    of its samples that are right; or the share of right answers. None: ``correct_answers`` if ``samples`` is
    given, else ``own_answers``."""
    prompts: Text | None = None
    """A file with a JSON object per line: ``question`` or ``prompt``, and ``answer`` where it is compared."""
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

    @model_validator(mode="after")
    def _counts(self) -> TargetWalk:
        if (self.prompts is None) == (not self.tasks):
            raise ValueError("give either prompts, a file with a JSON object per line, or tasks")
        if self.include_path is not None and not self.tasks:
            raise ValueError("include_path has no effect without tasks: it is where they are looked for")
        if self.format is not None and self.prompts is None:
            raise ValueError("format has no effect on tasks, which say how answers are judged")
        for key in ("samples", "format", "seed"):
            if getattr(self, key) is not None and self.chosen_by == "own_answers":
                raise ValueError(
                    f"{key} has no effect by own_answers, which are greedy and not judged; choose by "
                    "correct_answers or by score, or leave it out"
                )
        if self.seed is not None and self.samples is None and self.by == "score":
            raise ValueError("seed has no effect without samples: one answer is greedy")
        return self

    @property
    def chosen_by(self) -> Literal["own_answers", "correct_answers", "score"]:
        """``by``, or what it stands for."""
        return self.by or ("own_answers" if self.samples is None else "correct_answers")


_STEPS, _WALK = "target steps", "a walk"
TARGET_KINDS = (_STEPS, _WALK)
"""What pydantic puts into the place of a problem in a target, beside the keys."""
Target = Annotated[
    Annotated[OneOrMoreSteps, Tag(_STEPS)] | Annotated[TargetWalk, Tag(_WALK)],
    Discriminator(lambda value: _WALK if isinstance(value, (dict, TargetWalk)) else _STEPS),
]
