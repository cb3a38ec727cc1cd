"""lm-eval on predictions and on what they are compared with, in one table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubextrap.evaluate.comparison import compared_checkpoints
    from hubextrap.evaluate.own_tasks import Answering, TaskFile
    from hubextrap.evaluate.render import format_figure, to_markdown, to_rich, verdicts
    from hubextrap.evaluate.run import Harness, Measurement, evaluate
    from hubextrap.evaluate.table import (
        EvaluationTable,
        Row,
        Score,
        Settings,
        TaskRecord,
        check_replaceable,
        check_writable,
    )
    from hubextrap.evaluate.threshold import check_judgeable, check_loss

__all__ = [
    "Answering",
    "EvaluationTable",
    "Harness",
    "Measurement",
    "Row",
    "Score",
    "Settings",
    "TaskFile",
    "TaskRecord",
    "check_judgeable",
    "check_loss",
    "check_replaceable",
    "check_writable",
    "compared_checkpoints",
    "evaluate",
    "format_figure",
    "to_markdown",
    "to_rich",
    "verdicts",
]

_MODULES = {
    "compared_checkpoints": "comparison",
    **dict.fromkeys(("Answering", "TaskFile"), "own_tasks"),
    **dict.fromkeys(("Harness", "Measurement", "evaluate"), "run"),
    **dict.fromkeys(("check_judgeable", "check_loss"), "threshold"),
    **dict.fromkeys(("format_figure", "to_markdown", "to_rich", "verdicts"), "render"),
    **dict.fromkeys(("EvaluationTable", "Row", "Score", "Settings", "TaskRecord"), "table"),
    **dict.fromkeys(("check_replaceable", "check_writable"), "table"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
