"""What a trajectory says about itself: saved tables and pure functions on them."""

from __future__ import annotations

from hubextrap.statistics.backtesting import (
    Backtest,
    BacktestCandidate,
    BacktestRow,
    backtest_memory,
    backtest_table,
    brief_backtest,
    candidates,
)
from hubextrap.statistics.calibration import Expectation, expect_of_last, is_rounded, tensors_at_once
from hubextrap.statistics.linearity import Linearity, RandomWalk, random_walk
from hubextrap.statistics.plain_names import as_recipe, plain_name
from hubextrap.statistics.table import GramTable
from hubextrap.statistics.verdict import (
    HORIZONS,
    BacktestVerdict,
    HorizonMeans,
    Trust,
    at_the_task,
    horizon_classes,
    horizon_means,
    judge,
    pair_counts,
    trust,
)

__all__ = [
    "HORIZONS",
    "Backtest",
    "BacktestCandidate",
    "BacktestRow",
    "BacktestVerdict",
    "Expectation",
    "GramTable",
    "HorizonMeans",
    "Linearity",
    "RandomWalk",
    "Trust",
    "as_recipe",
    "at_the_task",
    "backtest_memory",
    "backtest_table",
    "brief_backtest",
    "candidates",
    "expect_of_last",
    "horizon_classes",
    "horizon_means",
    "is_rounded",
    "judge",
    "pair_counts",
    "plain_name",
    "random_walk",
    "tensors_at_once",
    "trust",
]
