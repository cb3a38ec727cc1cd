"""What a trajectory says about itself: saved tables and pure functions on them."""

from __future__ import annotations

from hubextrap.statistics.linearity import Linearity, RandomWalk, r_squared, random_walk
from hubextrap.statistics.logprobs import LogProbs, LogProbSource, measure_logprobs
from hubextrap.statistics.scan import Sample, Scan, ScannedCheckpoint, module_kind
from hubextrap.statistics.table import GramTable

__all__ = [
    "GramTable",
    "Linearity",
    "LogProbSource",
    "LogProbs",
    "RandomWalk",
    "Sample",
    "Scan",
    "ScannedCheckpoint",
    "measure_logprobs",
    "module_kind",
    "r_squared",
    "random_walk",
]
