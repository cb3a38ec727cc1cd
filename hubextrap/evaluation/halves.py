"""Choosing among predictions on one half of the problems, and reporting on the other.

The best of many looks better than it is on the problems on which it was found to be best. Problems that had
no say in the choice do not have that bias.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import EvaluationError
from hubextrap.evaluation.table import EvaluationTable, Key, Row, Score, first_by_task

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_SEED = 20_260_521
_FEWEST = 4


def main_figures(row: Row, tasks: Collection[str]) -> tuple[Key, ...]:
    """The first figure of each task that is a mean over problems and says which direction is better.

    Args:
        tasks: those that have problems of their own. A group holds the problems of its members in another
            order; halved as well, it would let problems decide that are to report.

    Raises:
        EvaluationError: no task has one, or a task has too few problems to be halved.
    """
    keys = []
    for score in row.scores:
        if score.task not in tasks or score.problems is None or score.higher_is_better is None:
            continue
        if len(score.problems) < _FEWEST:
            raise EvaluationError(
                f"{score.title}: {len(score.problems)} problems cannot be halved into some to choose by and "
                f"some to report; give at least {_FEWEST}"
            )
        keys.append(score.key)
    if not keys:
        raise EvaluationError(
            "none of the tasks has a figure that is a mean over problems and says which direction is better, "
            "so nothing can be chosen by it; choose another task"
        )
    return tuple(first_by_task(keys).values())


def halves(problems: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which problems decide and which report: random halves, always the same; the odd one reports."""
    order = np.random.default_rng(_SEED).permutation(problems)
    return tuple(sorted(order[: problems // 2].tolist())), tuple(sorted(order[problems // 2 :].tolist()))


def on_half(table: EvaluationTable, keys: Sequence[Key], *, reporting: bool) -> EvaluationTable:
    """``table`` with the figures ``keys`` alone, each over one half of its task's problems."""
    rows = []
    for row in table.rows:
        scores = tuple(_restricted(row, key, reporting) for key in keys)
        rows.append(row.model_copy(update={"scores": scores}))
    return table.model_copy(update={"rows": tuple(rows)})


def _restricted(row: Row, key: Key, reporting: bool) -> Score:
    score = row.score(key)
    if score is None or score.problems is None:
        raise EvaluationError(f"{row.label}: {' '.join(key[:2])} has no figure per problem; measure it again")
    problems = tuple(score.problems[index] for index in halves(len(score.problems))[reporting])
    error = stdev(problems) / math.sqrt(len(problems)) if len(problems) > 1 else None
    return score.model_copy(update={"problems": problems, "value": fmean(problems), "stderr": error})


def merit(row: Row, keys: Sequence[Key]) -> float:
    """What a choice goes by: the mean of the figures over the tasks, those that had better be low negated."""
    scores = [score for key in keys if (score := row.score(key)) is not None]
    return fmean(score.value if score.higher_is_better else -score.value for score in scores)
