"""What a trajectory says about itself: saved tables and pure functions on them."""

from __future__ import annotations

from hubextrap.statistics.table import GramTable

__all__ = ["GramTable"]
