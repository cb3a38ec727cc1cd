"""The Python API and the only place where the rooms are wired together. A CLI verb is one call into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.api.backtesting import backtest
    from hubextrap.api.chain import RunResult, run
    from hubextrap.api.completing import Completing, complete
    from hubextrap.api.drafting import Draft, advised_recipe, check_recipe_place, save_recipe
    from hubextrap.api.finishing import finish
    from hubextrap.api.merging import MergeResult, Prediction, merge
    from hubextrap.api.planning import PlanReport, plan
    from hubextrap.api.predicting import PredictResult, predict
    from hubextrap.api.preparing import MergeOptions, Prepared, prepare
    from hubextrap.api.publishing import Publication, check_publication, publish
    from hubextrap.api.pushing import push
    from hubextrap.api.regrounding import RegroundResult, reground
    from hubextrap.api.reporting import ReportResult, report
    from hubextrap.api.scanning import scan
    from hubextrap.api.stepwise import evaluate_steps
    from hubextrap.api.submitting import Submission, submit
    from hubextrap.api.sweeping import sweep, sweep_files
    from hubextrap.api.verifying import Verification, VerifiedFile, verify
    from hubextrap.api.walking import WalkResult, walk
    from hubextrap.api.watcher import WatchLook
    from hubextrap.api.watching import watch
    from hubextrap.api.working import worker
    from hubextrap.opening import ReadingOptions, Run

__all__ = [
    "Completing",
    "Draft",
    "MergeOptions",
    "MergeResult",
    "PlanReport",
    "PredictResult",
    "Prediction",
    "Prepared",
    "Publication",
    "ReadingOptions",
    "RegroundResult",
    "ReportResult",
    "Run",
    "RunResult",
    "Submission",
    "Verification",
    "VerifiedFile",
    "WalkResult",
    "WatchLook",
    "advised_recipe",
    "backtest",
    "check_publication",
    "check_recipe_place",
    "complete",
    "evaluate_steps",
    "finish",
    "merge",
    "plan",
    "predict",
    "prepare",
    "publish",
    "push",
    "reground",
    "report",
    "run",
    "save_recipe",
    "scan",
    "submit",
    "sweep",
    "sweep_files",
    "verify",
    "walk",
    "watch",
    "worker",
]

_find = names_of(__name__)


def __getattr__(name: str) -> Any:
    if name == "Settings":  # MergeOptions, with a warning
        from hubextrap.api.preparing import old_settings

        return old_settings()
    return _find(name)
