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
from hubextrap.statistics.findings import JudgedTarget, Rehearsals, RunVerdict, ScoreOutcome, Trust
from hubextrap.statistics.judgement import judge_run, not_judged, trust, with_scores
from hubextrap.statistics.linearity import Linearity, RandomWalk, random_walk
from hubextrap.statistics.plain_names import as_recipe, plain_name
from hubextrap.statistics.table import GramTable
from hubextrap.statistics.verdict import (
    HORIZONS,
    HorizonMeans,
    at_the_task,
    horizon_classes,
    horizon_means,
    pair_counts,
)

__all__ = [
    "HORIZONS",
    "Backtest",
    "BacktestCandidate",
    "BacktestRow",
    "Expectation",
    "GramTable",
    "HorizonMeans",
    "JudgedTarget",
    "Linearity",
    "RandomWalk",
    "Rehearsals",
    "RunVerdict",
    "ScoreOutcome",
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
    "judge_run",
    "not_judged",
    "pair_counts",
    "plain_name",
    "random_walk",
    "tensors_at_once",
    "trust",
    "with_scores",
]
