"""--sample and --exact: how many of the weights a command reads that only looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hubextrap.sample_sizes import DEFAULT_SAMPLE, sample_problem

if TYPE_CHECKING:
    from hubextrap.sample_sizes import SampleChoice


def check_sample(text: str | None) -> str | None:
    """See that it is a number of weights while the command line is read.

    Raises:
        typer.BadParameter: it is none; a share is what the reference protocol draws.
    """
    if text is None:
        return None
    try:
        size = int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no number of weights; write 4096, or for a share of all weights "
            "`hubextrap scan --reference-share`"
        ) from None
    if problem := sample_problem(size):
        raise typer.BadParameter(problem)
    return text


@dataclass(frozen=True)
class Sampled:
    """How many of the weights are read."""

    sample: str | None = typer.Option(
        None,
        callback=check_sample,
        metavar="N",
        help="Read N weights of each tensor only, and give every figure with its standard error. Default for "
        f"a run on the Hub above 1 GB: {DEFAULT_SAMPLE}.",
    )
    exact: bool = typer.Option(
        False, "--exact", help="Read all weights. Default for local checkpoints and for small runs."
    )

    def __post_init__(self) -> None:
        """
        Raises:
            typer.BadParameter: both options are given.
        """
        if self.sample is not None and self.exact:
            raise typer.BadParameter(
                f"--exact reads all weights, and --sample {self.sample} some of them; give one of them"
            )

    @property
    def size(self) -> int:
        """Weights of each tensor, if it is a sample that is read."""
        return DEFAULT_SAMPLE if self.sample is None else int(self.sample)

    @property
    def choice(self) -> SampleChoice:
        """As the API takes it."""
        return "exact" if self.exact else "auto" if self.sample is None else int(self.sample)
