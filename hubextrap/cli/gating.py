"""The options that say what a prediction has to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from hubextrap.cli.options import split_list

if TYPE_CHECKING:
    from hubextrap.evaluation import Gate

PushIfBetter = Annotated[
    bool,
    typer.Option(
        "--push-if-better",
        help="Evaluate the prediction in --out first. Push these bytes if it passes --max-loss and "
        "--min-score; without either, if it is not worse than the last observed checkpoint by more than "
        "chance. Otherwise push nothing and exit with code 3.",
    ),
]


@dataclass(frozen=True)
class Gating:
    """What a prediction has to reach."""

    max_loss: float | None = typer.Option(
        None,
        "--max-loss",
        metavar="X",
        help="Exit with code 3 if, on any task, a prediction scores more than X below the last observed "
        "checkpoint. X is in the unit of the task's main metric. -0.02 asks for a gain of at least 0.02.",
    )
    min_score: list[str] | None = typer.Option(
        None,
        "--min-score",
        metavar="[TASK=]X",
        help="Exit with code 3 if the main metric of a prediction is worse than X, on any task or on TASK. "
        "Separate several by commas or repeat the option.",
    )

    def gate(self, push_if_better: bool = False) -> Gate | None:
        """The same for the API; None where nothing is asked for.

        Raises:
            typer.BadParameter: a bound is no number, or there are two for the same.
        """
        from hubextrap.evaluation.threshold import Gate

        if self.max_loss is not None and not math.isfinite(self.max_loss):
            raise typer.BadParameter(f"--max-loss {self.max_loss}: is no number; write one, e.g. 0.02")
        bounds: dict[str, float] = {}
        for text in split_list("--min-score", self.min_score):
            task, _, number = text.rpartition("=")
            if "=" in text and not task:
                raise typer.BadParameter(f"--min-score {text}: names no task; write TASK=X, or X")
            if task in bounds:
                raise typer.BadParameter(f"--min-score {text}: there is a bound for that already; give one")
            bounds[task] = _bound(text, number)
        if self.max_loss is None and not bounds and not push_if_better:
            return None
        return Gate(self.max_loss, bounds.pop("", None), bounds, push_if_better)


def _bound(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"--min-score {text}: has to end with a number, as in 0.5 or gsm8k=0.5")
    return value
