"""The Python API and the only place where the rooms are wired together. A CLI verb is one call into it."""

from __future__ import annotations

from hubextrap.api.backtesting import backtest
from hubextrap.api.chain import RunResult, check_judged, push, run
from hubextrap.api.completing import Completing, complete
from hubextrap.api.merging import MergeResult, Prediction, merge
from hubextrap.api.planning import PlanReport, plan
from hubextrap.api.prepare import MergeOptions, Prepared, old_settings, prepare
from hubextrap.api.publishing import Publication, check_publication, publish
from hubextrap.api.regrounding import RegroundResult, reground
from hubextrap.api.reporting import ReportResult, report
from hubextrap.api.scanning import scan
from hubextrap.api.sweeping import sweep, sweep_files
from hubextrap.api.verifying import Verification, VerifiedFile, verify
from hubextrap.opening import ReadingOptions, Run

__all__ = [
    "Completing",
    "MergeOptions",
    "MergeResult",
    "PlanReport",
    "Prediction",
    "Prepared",
    "Publication",
    "ReadingOptions",
    "RegroundResult",
    "ReportResult",
    "Run",
    "RunResult",
    "Verification",
    "VerifiedFile",
    "backtest",
    "check_judged",
    "check_publication",
    "complete",
    "merge",
    "plan",
    "prepare",
    "publish",
    "push",
    "reground",
    "report",
    "run",
    "scan",
    "sweep",
    "sweep_files",
    "verify",
]


def __getattr__(name: str) -> object:
    if name == "Settings":
        return old_settings()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
