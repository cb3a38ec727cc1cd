"""What a trajectory says about itself: saved tables and pure functions on them."""

from __future__ import annotations

from hubextrap.statistics.backtesting import (
    DEFAULT_RULE,
    Backtest,
    BacktestRow,
    Candidate,
    backtest_memory,
    backtest_table,
    candidates,
)
from hubextrap.statistics.calibration import (
    Expectation,
    expect,
    expect_of_last,
    fit_memory,
    is_rounded,
    pasts,
)
from hubextrap.statistics.linearity import Linearity, RandomWalk, r_squared, random_walk
from hubextrap.statistics.logprobs import LogProbs, LogProbSource
from hubextrap.statistics.scan import Sample, Scan, ScannedCheckpoint, module_kind
from hubextrap.statistics.table import GramTable
from hubextrap.statistics.verdict import (
    HORIZONS,
    HorizonMeans,
    Verdict,
    horizon_classes,
    horizon_means,
    judge,
    pair_counts,
)

__all__ = [
    "DEFAULT_RULE",
    "HORIZONS",
    "Backtest",
    "BacktestRow",
    "Candidate",
    "Expectation",
    "GramTable",
    "HorizonMeans",
    "Linearity",
    "LogProbSource",
    "LogProbs",
    "RandomWalk",
    "Sample",
    "Scan",
    "ScannedCheckpoint",
    "Verdict",
    "backtest_memory",
    "backtest_table",
    "candidates",
    "expect",
    "expect_of_last",
    "fit_memory",
    "horizon_classes",
    "horizon_means",
    "is_rounded",
    "judge",
    "module_kind",
    "pair_counts",
    "pasts",
    "r_squared",
    "random_walk",
]
