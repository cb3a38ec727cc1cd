"""The options that say what is made of a run of LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hubextrap.foreign_data import shorten

if TYPE_CHECKING:
    from hubextrap.recipe import Recipe


def check_kind(kind: str | None) -> str | None:
    """Refuse what no output is, while the command line is read: typer.BadParameter."""
    if kind not in (None, "adapter", "merged"):
        raise typer.BadParameter(f"{shorten(repr(kind))}: has to be adapter or merged")
    return kind


def check_rank(rank: str | None) -> str | None:
    """Refuse what no rank is, while the command line is read: typer.BadParameter."""
    if rank not in (None, "exact") and not (
        str(rank).isascii() and str(rank).isdecimal() and len(str(rank)) < 9
    ):
        raise typer.BadParameter(f"{shorten(repr(rank))}: has to be a whole number up to 65536, or exact")
    return rank


@dataclass(frozen=True)
class Outputting:
    """What is made of adapters."""

    as_: str | None = typer.Option(
        None,
        "--as",
        callback=check_kind,
        metavar="adapter|merged",
        help="For a run of LoRA adapters: predict an adapter, or the full model with the prediction merged "
        "into the base. Default: what the recipe's output section says; else adapter.",
    )
    rank: str | None = typer.Option(
        None,
        "--rank",
        callback=check_rank,
        metavar="N|exact",
        help="Rank of the predicted adapter. exact cuts nothing: the ranks of the checkpoints added up. "
        "Default: what the recipe's output section says; else the largest of the run.",
    )

    @property
    def rank_given(self) -> int | str | None:
        """The rank as a recipe has it."""
        return self.rank if self.rank in (None, "exact") else int(self.rank)

    def on(self, recipe: Recipe) -> Recipe:
        """The recipe with what was given, if anything was.

        Raises:
            RecipeError: see `Recipe.with_output`.
        """
        return recipe.with_output(self.as_, self.rank_given)
