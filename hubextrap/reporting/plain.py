"""What methods are called where nobody has to know their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubextrap.statistics import BacktestCandidate

_NAMES = {
    "average": "the mean of all checkpoints",
    "calibrated": "trends weighed by what they were worth so far",
    "ema": "the moving average of the checkpoints",
    "late_lines": "a blend of the two latest trends",
    "least_squares": "the trend of the whole run",
    "least_squares(window=half, through_last=true)": "the trend of the last half",
    "least_squares(window=half, through_last=true, damping=auto)": (
        "the trend of the last half, as far as it was worth it"
    ),
    "low_rank": "the main direction of the run",
    "persistence": "the last checkpoint as it is",
    "recipe": "the rules of the recipe",
    "two_point": "a line from the first checkpoint",
    "two_point(base_step=auto)": "a line from the best earlier checkpoint",
}


def plain_name(method: str) -> str:
    """Of a candidate, by the name that backtests give it; one of another package has no other."""
    return _NAMES.get(method, method)


def titled(candidate: BacktestCandidate) -> str:
    """Plain name first, then the one to put into a recipe."""
    plain = plain_name(candidate.name)
    return candidate.name if plain == candidate.name else f"{plain[0].upper()}{plain[1:]} ({candidate.name})"
