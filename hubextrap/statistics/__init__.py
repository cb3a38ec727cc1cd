"""What a trajectory says about itself: saved tables and pure functions on them."""

from __future__ import annotations

from hubextrap.statistics.backtesting import (
    DEFAULT_RULE,
    Backtest,
    BacktestRow,
    Candidate,
    backtest_table,
    candidates,
)
from hubextrap.statistics.calibration import Expectation, expect, is_rounded, pasts
from hubextrap.statistics.linearity import Linearity, RandomWalk, r_squared, random_walk
from hubextrap.statistics.logprobs import LogProbRequest, LogProbs, LogProbSource, measure_logprobs
from hubextrap.statistics.scan import Sample, Scan, ScannedCheckpoint, module_kind
from hubextrap.statistics.table import GramTable

__all__ = [
    "DEFAULT_RULE",
    "Backtest",
    "BacktestRow",
    "Candidate",
    "Expectation",
    "GramTable",
    "Linearity",
    "LogProbRequest",
    "LogProbSource",
    "LogProbs",
    "RandomWalk",
    "Sample",
    "Scan",
    "ScannedCheckpoint",
    "backtest_table",
    "candidates",
    "expect",
    "is_rounded",
    "measure_logprobs",
    "module_kind",
    "pasts",
    "r_squared",
    "random_walk",
]
