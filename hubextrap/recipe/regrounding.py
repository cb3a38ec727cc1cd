"""The recipe of `hubextrap reground`: a trainer's command, how far to train and to jump, and when to stop."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hubextrap.recipe.commands import Command, check_command, check_placeholders
from hubextrap.recipe.models import WholeRecipe, repo_id
from hubextrap.recipe.parts import NamesAClock, RecipeSection, Text, number_or

TRAIN_PLACEHOLDERS = ("model", "start_step", "steps", "output")
PROBE_PLACEHOLDERS = ("model",)
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[
    float | Literal["off"], number_or("off", "a number above 0", lambda value: 0 < value < float("inf"))
]


class GuardSection(RecipeSection):
    """``reground.guard``: when a jump is skipped, and when it is taken back."""

    max_error: Limit = 1.0
    """A jump whose backtest or expected relative error is above it is skipped; 1 is standing still."""
    shell: bool = False
    """Run the probe by ``/bin/sh -c``."""
    probe: Command | None = None
    """A command that prints a number for ``{model}``, higher is better; run before and after each jump."""
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Harm above it takes the jump back and halves n; a gain above it doubles n, up to ``longest_jump``."""
    longest_jump: Count | None = None
    """The largest n that gains may lead to; ``jump`` when None."""
    prompts: Text | None = None
    """A file with a JSON object per line, ``question`` or ``prompt``. The round's model answers greedily;
    a jump that makes its answers less likely by half a nat an answer or more is taken back."""
    max_tokens: Count | None = None
    """Of an answer to ``prompts``."""
    apply_chat_template: bool = False
    """Put each of ``prompts`` into the tokenizer's chat template, as the user's message."""

    @field_validator("probe")
    @classmethod
    def _probe_can_be_run(
        cls, value: str | tuple[str, ...] | None, info: ValidationInfo
    ) -> str | tuple[str, ...] | None:
        if value is not None:
            check_command(value, info.data.get("shell", False), PROBE_PLACEHOLDERS, PROBE_PLACEHOLDERS)
        return value

    @model_validator(mode="after")
    def _what_they_go_with_is_there(self) -> GuardSection:
        if self.probe is None and {"margin", "shell", "longest_jump"} & self.model_fields_set:
            raise ValueError("margin, shell and longest_jump go with a probe, but there is none")
        if self.prompts is None and {"max_tokens", "apply_chat_template"} & self.model_fields_set:
            raise ValueError("max_tokens and apply_chat_template go with prompts, but there are none")
        if self.probe is not None and self.margin is None:
            raise ValueError("a probe needs a margin, 0 or more: about twice the standard error of its score")
        return self


class RegroundSection(RecipeSection):
    """``reground``: train ``window`` steps, jump over ``jump`` steps, and again."""

    model: Text
    """Where the run starts: a local folder, or any reference to the Hub."""
    shell: bool = False
    """Run ``train`` by ``/bin/sh -c``."""
    train: Command
    """The trainer's command, with ``{model}``, ``{start_step}``, ``{steps}`` and ``{output}``."""
    checkpoint: Text
    """The folder that a round leaves behind, relative to ``{output}``."""
    window: Count
    """m: optimizer steps per round."""
    jump: Count
    """n: steps to jump over."""
    rule: Literal["two_point", "anchored", "calibrated"] = "two_point"
    clock: Annotated[str | dict[str, Any], NamesAClock] = "auto"
    """What rounds and jumps are measured by: ``steps``; ``learning_rate``, by the trainer_state.json in each
    round's checkpoint; ``auto``, by that where it is there and the rate really changed; a file of step and
    learning_rate, or a schedule with its parameters, whose steps are the run's RL steps."""
    iterations: Count | None = None
    max_rl_steps: Count | None = None
    max_represented_steps: Count | None = None
    max_skipped: Count | None = None
    """Stop when so many jumps in a row were skipped or taken back."""
    guard: GuardSection = GuardSection()
    keep: Literal["all", "last"] = "all"
    """``last``: remove the weights of rounds that no later one needs."""

    @field_validator("train")
    @classmethod
    def _trainer_can_be_run(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        check_command(value, info.data.get("shell", False), TRAIN_PLACEHOLDERS, ("model", "steps", "output"))
        return value

    @field_validator("checkpoint")
    @classmethod
    def _inside_the_output(cls, value: str) -> str:
        check_placeholders(value, ("step", "steps", "start_step"))
        if value.count("{step}") > 1:
            raise ValueError("has {step} more than once")
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{value!r} must lie in the round's {{output}}; give a path relative to it")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> RegroundSection:
        if self.iterations is None and self.max_rl_steps is None and self.max_represented_steps is None:
            raise ValueError(
                "does not say when to stop; give iterations, max_rl_steps or max_represented_steps"
            )
        if self.max_rl_steps is not None and self.max_rl_steps < self.window:
            raise ValueError(f"max_rl_steps {self.max_rl_steps} is less than one window of {self.window}")
        longest = self.guard.longest_jump
        if longest is not None and longest < self.jump:
            raise ValueError(f"guard.longest_jump {longest} is less than jump {self.jump}")
        return self


class RegroundPushSection(RecipeSection):
    """``push``: every round's real and extrapolated checkpoint becomes a branch."""

    repo: Annotated[Text, repo_id("every checkpoint gets a branch of its own")]
    private: bool = False


class RegroundRecipe(WholeRecipe):
    """A whole recipe of `hubextrap reground`, checked. `load_reground_recipe` makes one."""

    reground: RegroundSection
    push: RegroundPushSection | None = None

    def with_clock(self, clock: str | None) -> RegroundRecipe:
        """The recipe with what was said elsewhere of its clock, if anything was."""
        if clock is None:
            return self
        return self.model_copy(update={"reground": self.reground.model_copy(update={"clock": clock})})

    def values(self) -> dict[str, Any]:
        """Every key by its dotted path, defaults included, as JSON values."""
        return _flat(self.model_dump(mode="json"))


def _flat(section: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        place = f"{path}.{key}" if path else key
        found |= _flat(value, place) if isinstance(value, dict) else {place: value}
    return found
