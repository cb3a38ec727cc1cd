"""hubextrap: predict later RL checkpoints from earlier ones on the Hugging Face Hub.

The names below are the Python API, imported when they are first used. Evaluation is in `hubextrap.evaluate`.
"""

from __future__ import annotations

from hubextrap._version import __version__

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
        ReadingOptions,
        Run,
        RunResult,
        Verification,
        merge,
        plan,
        push,
        run,
        verify,
    )
    from hubextrap.errors import HubExtrapError
    from hubextrap.evaluate import EvaluationTable
    from hubextrap.hub import PushTarget
    from hubextrap.recipe import Recipe, load_recipe, parse_recipe
    from hubextrap.reground import ExtrapolationCallback
    from hubextrap.trajectory import Checkpoint, Trajectory, find_trajectory, resolve_checkpoint

_HOMES = {
    "Checkpoint": "trajectory",
    "EvaluationTable": "evaluate",
    "ExtrapolationCallback": "reground",
    "HubExtrapError": "errors",
    "MergeOptions": "api",
    "MergeResult": "api",
    "PlanReport": "api",
    "Prediction": "api",
    "PushTarget": "hub",
    "Recipe": "recipe",
    "ReadingOptions": "api",
    "Run": "api",
    "RunResult": "api",
    "Trajectory": "trajectory",
    "Verification": "api",
    "find_trajectory": "trajectory",
    "load_recipe": "recipe",
    "merge": "api",
    "parse_recipe": "recipe",
    "plan": "api",
    "push": "api",
    "resolve_checkpoint": "trajectory",
    "run": "api",
    "verify": "api",
}

__all__ = [
    "Checkpoint",
    "EvaluationTable",
    "ExtrapolationCallback",
    "HubExtrapError",
    "MergeOptions",
    "MergeResult",
    "PlanReport",
    "Prediction",
    "PushTarget",
    "ReadingOptions",
    "Recipe",
    "Run",
    "RunResult",
    "Trajectory",
    "Verification",
    "__version__",
    "find_trajectory",
    "load_recipe",
    "merge",
    "parse_recipe",
    "plan",
    "push",
    "resolve_checkpoint",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "Settings":  # MergeOptions, with a warning
        from hubextrap import api

        return api.Settings
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
