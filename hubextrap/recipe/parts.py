"""What the sections of a recipe consist of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hubextrap.clocks import schedule_problems
from hubextrap.methods import MAX_STEP
from hubextrap.notebooks import one_line

OF_KEYS = "of_keys"
"""The kind of error that has problems of several keys, or tuples of keys, of its place, as ``problems``."""


def _as_tuple(value: object) -> object:
    """Lists become tuples; what is in them is checked strictly afterwards."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_more(value: object) -> object:
    """A single value becomes a tuple of one."""
    return _as_tuple(value) if value is None or isinstance(value, (tuple, list, dict)) else (value,)


def _names_a_clock(value: object) -> object:
    if isinstance(value, dict):
        if problems := schedule_problems(value):
            said = "; ".join(f"{name}: {problem}" for name, problem in problems)
            raise PydanticCustomError(OF_KEYS, "{said}", {"said": said, "problems": problems})
    elif not isinstance(value, str) or not value:
        raise ValueError(
            "must be auto, steps, learning_rate, a file of step and learning_rate, or a schedule: "
            f"{{schedule: cosine, total_steps: 400}}; not {value!r}"
        )
    return value


def number_or(word: str, numbers: str, fits: Callable[[Any], bool]) -> BeforeValidator:
    """Takes a number that fits, or the word; ``numbers`` is what messages call those that fit."""

    def check(value: object) -> object:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != word and not (is_number and fits(value)):
            raise ValueError(f"must be {numbers}, or {word}, not {value!r}")
        return value

    return BeforeValidator(check)


Text = Annotated[str, Field(min_length=1)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
AsTuple = BeforeValidator(_as_tuple)
OneOrMoreTexts = Annotated[tuple[Text, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
OneOrMoreSteps = Annotated[tuple[Step, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
OneOrMoreCounts = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_STEP)], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
]
NamesAClock = BeforeValidator(_names_a_clock)
"""Of a text or a mapping."""


class RecipeSection(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def __repr__(self) -> str:
        said = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return one_line(self, *(f"{key}: {value}" for key, value in said.items()))

    __str__ = __repr__
