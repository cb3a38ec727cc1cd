"""lm-eval on predictions and on what they are compared with, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.evaluate.comparison import compared_checkpoints
    from hubextrap.evaluate.options import EvaluationOptions
    from hubextrap.evaluate.own_tasks import Answering, TaskFile
    from hubextrap.evaluate.render import format_figure, to_markdown, to_rich, verdicts
    from hubextrap.evaluate.run import Harness, Measurement, evaluate
    from hubextrap.evaluate.table import (
        EvaluationTable,
        MeasurementSettings,
        Row,
        Score,
        TaskRecord,
        check_replaceable,
        check_writable,
    )
    from hubextrap.evaluate.threshold import check_judgeable, check_loss

__all__ = [
    "Answering",
    "EvaluationOptions",
    "EvaluationTable",
    "Harness",
    "Measurement",
    "MeasurementSettings",
    "Row",
    "Score",
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

__getattr__ = names_of(__name__)
