"""How much worse than the last observed checkpoint a prediction may be: what `--max-loss` asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError, PredictionWorse
from hubextrap.evaluation.render import format_figure
from hubextrap.evaluation.table import LAST, PREDICTION, EvaluationTable, Key, first_by_task
from hubextrap.foreign_text import own_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_ROUNDING = 1e-9
"""0.1 - 0.08 is a little more than 0.02."""


def check_judgeable(labels: Collection[str]) -> None:
    """Find out before hours of work whether the rows will hold what `check_loss` compares.

    Raises:
        EvaluationError: no row is a prediction, or none is the last observed checkpoint.
    """
    if not any(label.startswith(PREDICTION) for label in labels):
        raise EvaluationError(
            "--max-loss: none of the models has a hubextrap.json, so there is no prediction to judge; "
            "name one, or leave the option out"
        )
    if LAST not in labels:
        raise EvaluationError(
            "--max-loss: there is no last observed checkpoint to compare with; "
            f"name it: --against {LAST}=REF, or {LAST} in the recipe's evaluate.against"
        )


def check_loss(tables: Sequence[EvaluationTable], max_loss: float, tasks: Collection[str]) -> None:
    """Refuse predictions that lose more than ``max_loss`` against the last observed checkpoint.

    A task is judged by the first of its figures that says which direction is better, in the figure's own
    unit; that is the order in which lm-eval lists them. A group with a figure of its own is judged by that
    and not by its members.

    Args:
        tasks: the tasks, groups and tags that were asked for.

    Raises:
        PredictionWorse: one sentence for each prediction and task that loses more, or has no finite figure.
        EvaluationError: a table holds nothing that could be judged.
    """
    losses: list[str] = []
    for table in tables:
        check_judgeable([row.label for row in table.rows])
        assert table.last is not None
        for key in _main_keys(table, tasks):
            for row in table.rows:
                ours, theirs = row.score(key), table.last.score(key)
                if not row.label.startswith(PREDICTION) or ours is None or theirs is None:
                    continue
                loss = theirs.value - ours.value if theirs.higher_is_better else ours.value - theirs.value
                if not loss <= max_loss + _ROUNDING:  # also where either is not a number
                    change = format_figure(ours.value - theirs.value, signed=True)
                    losses.append(
                        f"the {row.label} is worse than the last observed checkpoint by more than "
                        f"{max_loss:g} on {ours.title}: {format_figure(ours.value)} against "
                        f"{format_figure(theirs.value)} ({change})"
                    )
    if losses:
        raise PredictionWorse(own_lines(*losses))


def _main_keys(table: EvaluationTable, tasks: Collection[str]) -> list[Key]:
    """The figure by which each task is judged."""
    directed = {score.key for row in table.rows for score in row.scores if score.higher_is_better is not None}
    first = first_by_task(key for key in table.keys if key in directed)
    wanted = dict.fromkeys([*tasks, *table.settings.task_files])
    # A tag has no figure of its own: its members are judged, and nobody knows which they are.
    judged = wanted if all(task in first for task in wanted) else first
    if not judged:
        raise EvaluationError(
            "--max-loss: none of the tasks says whether higher figures are better, so nothing can be judged; "
            "leave the option out"
        )
    return [first[task] for task in judged]
