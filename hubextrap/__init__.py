"""hubextrap: predict later RL checkpoints from earlier ones on the Hugging Face Hub.

The names below are the Python API, imported when they are first used. The subpackages offer more.
"""

from __future__ import annotations

from hubextrap._version import __version__
from hubextrap.lazy import names_of

TYPE_CHECKING = (
    False  # typing's own takes milliseconds, in which an interrupted command would show a traceback
)
if TYPE_CHECKING:
    from typing import Any

    from hubextrap.api import (
        MergeOptions,
        MergeResult,
        PlanReport,
        Prediction,
        PredictResult,
        ReadingOptions,
        RegroundResult,
        ReportResult,
        Run,
        RunResult,
        Verification,
        WalkResult,
        WatchLook,
        backtest,
        complete,
        evaluate_steps,
        finish,
        merge,
        plan,
        predict,
        push,
        reground,
        report,
        run,
        scan,
        submit,
        sweep,
        verify,
        walk,
        watch,
        worker,
    )
    from hubextrap.errors import HubExtrapError
    from hubextrap.evaluation import Answering, EvaluationOptions, EvaluationTable, Gate, TaskFile, evaluate
    from hubextrap.evaluation.step_scores import StepScores
    from hubextrap.evaluation.sweep_report import SweepResult
    from hubextrap.hub import PushTarget
    from hubextrap.logits import LogProbRequest
    from hubextrap.logits.completing import Sampling
    from hubextrap.recipe import (
        Recipe,
        RegroundRecipe,
        WatchRecipe,
        load_recipe,
        load_reground_recipe,
        load_watch_recipe,
        parse_recipe,
    )
    from hubextrap.regrounding import ExtrapolationCallback
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest
    from hubextrap.trajectory import (
        Checkpoint,
        Trajectory,
        TrajectoryOptions,
        find_trajectory,
        resolve_checkpoint,
    )

__all__ = [
    "Answering",
    "Backtest",
    "Checkpoint",
    "EvaluationOptions",
    "EvaluationTable",
    "ExtrapolationCallback",
    "Gate",
    "HubExtrapError",
    "LogProbRequest",
    "MergeOptions",
    "MergeResult",
    "PlanReport",
    "PredictResult",
    "Prediction",
    "PushTarget",
    "ReadingOptions",
    "Recipe",
    "RegroundRecipe",
    "RegroundResult",
    "ReportResult",
    "Run",
    "RunResult",
    "Sampling",
    "Scan",
    "StepScores",
    "SweepResult",
    "TaskFile",
    "Trajectory",
    "TrajectoryOptions",
    "Verification",
    "WalkResult",
    "WatchLook",
    "WatchRecipe",
    "__version__",
    "backtest",
    "complete",
    "evaluate",
    "evaluate_steps",
    "find_trajectory",
    "finish",
    "load_recipe",
    "load_reground_recipe",
    "load_watch_recipe",
    "merge",
    "parse_recipe",
    "plan",
    "predict",
    "push",
    "reground",
    "report",
    "resolve_checkpoint",
    "run",
    "scan",
    "submit",
    "sweep",
    "verify",
    "walk",
    "watch",
    "worker",
]

_find = names_of(__name__)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "Settings":  # MergeOptions, with a warning
        from hubextrap.api.preparing import old_settings

        return old_settings()
    return _find(name)
