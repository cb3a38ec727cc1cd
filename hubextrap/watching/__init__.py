"""A run that is still training: which checkpoints were seen, and what was said and done for each."""

from __future__ import annotations

from hubextrap.watching.history import (
    HISTORY_NAME,
    Began,
    Gone,
    History,
    Made,
    Ran,
    Seen,
    Taken,
    read_history,
)

__all__ = [
    "HISTORY_NAME",
    "Began",
    "Gone",
    "History",
    "Made",
    "Ran",
    "Seen",
    "Taken",
    "read_history",
]
