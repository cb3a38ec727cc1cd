"""``output``: what is made of a run of LoRA adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from hubextrap.errors import RecipeError
from hubextrap.foreign_data import shorten
from hubextrap.recipe.parts import RecipeSection, number_or

EXACT = "exact"
MOST_RANK = 2**16
_RANKS = f"a whole number from 1 to {MOST_RANK}"


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and 1 <= value <= MOST_RANK


class OutputSection(RecipeSection):
    """``output``: an adapter of some rank, or the full model. Runs of full models have none."""

    as_: Literal["adapter", "merged"] = Field(default="adapter", alias="as")
    rank: Annotated[int | Literal["exact"], number_or(EXACT, _RANKS, _is_rank)] | None = None
    """The adapter's; ``exact`` cuts nothing: the sum of the ranks that take part. None: the run's largest."""

    @model_validator(mode="after")
    def _of_an_adapter(self) -> OutputSection:
        if self.as_ == "merged" and self.rank is not None:
            raise ValueError(
                "rank goes with as: adapter; a merged model has the full product, so leave it out"
            )
        return self

    def said(self, as_: str | None, rank: int | str | None) -> OutputSection:
        """The section with what was said elsewhere of its keys, None where nothing was.

        Raises:
            RecipeError: a value is none of its key's, or they do not go together.
        """
        kept = None if as_ == "merged" else self.rank
        try:
            return OutputSection.model_validate(
                {"as": self.as_ if as_ is None else as_, "rank": kept if rank is None else rank}
            )
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            reason = str(detail.get("ctx", {}).get("error", detail["msg"]))
            if detail["type"] == "literal_error":
                reason = f"must be adapter or merged, not {shorten(repr(as_))}"
            place = "".join(f".{part}" for part in detail["loc"])
            raise RecipeError(f"output{place}: {reason}") from error
