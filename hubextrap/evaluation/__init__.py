"""lm-eval on predictions and on what they are compared with, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.evaluation.comparison import compared_checkpoints
    from hubextrap.evaluation.options import Answering, EvaluationOptions, TaskFile
    from hubextrap.evaluation.render import format_figure, to_markdown, to_rich, verdicts
    from hubextrap.evaluation.run import Harness, Measurement, evaluate
    from hubextrap.evaluation.table import (
        EvaluationTable,
        MeasurementSettings,
        Row,
        Score,
        TaskRecord,
        check_replaceable,
        check_writable,
    )
    from hubextrap.evaluation.threshold import Gate, GateResult

__all__ = [
    "Answering",
    "EvaluationOptions",
    "EvaluationTable",
    "Gate",
    "GateResult",
    "Harness",
    "Measurement",
    "MeasurementSettings",
    "Row",
    "Score",
    "TaskFile",
    "TaskRecord",
    "check_replaceable",
    "check_writable",
    "compared_checkpoints",
    "evaluate",
    "format_figure",
    "to_markdown",
    "to_rich",
    "verdicts",
]

__getattr__ = names_of(__name__)
