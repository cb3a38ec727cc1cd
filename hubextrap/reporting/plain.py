"""What each method does, for readers who do not know its name."""

from __future__ import annotations

_DOES = {
    "average": "The mean of all checkpoints. It predicts no motion.",
    "calibrated": "Three trends, each weighed by how well it would have predicted this run so far.",
    "ema": "A moving average of the checkpoints. It predicts no motion.",
    "late_lines": "A fixed blend of two trends: over the last half of the run, and over its last quarter.",
    "least_squares": "The straight trend through all checkpoints.",
    "least_squares(window=half, through_last=true)": "The trend over the last half of the run.",
    "least_squares(window=half, through_last=true, damping=auto)": (
        "The trend over the last half of the run, followed only as far as that served it so far."
    ),
    "low_rank": "The one direction in which each tensor moved most, continued.",
    "two_point": "The straight line from the first checkpoint through the last one.",
    "two_point(base_step=auto)": (
        "The straight line through the last checkpoint, from the earlier one that served best so far."
    ),
}


def what_it_does(method: str) -> str:
    """Of a method by the name that backtests give it; "" of another package's."""
    return _DOES.get(method, "")
