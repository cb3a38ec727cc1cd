"""`backtest`: every method at every origin of a run, held against what came later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.api.prepare import refuse_merge_settings
from hubextrap.api.scanning import scan_for
from hubextrap.errors import StepError
from hubextrap.scans import Scan
from hubextrap.statistics import Backtest, BacktestCandidate, backtest_memory, backtest_table, candidates
from hubextrap.trajectory import find_recipe_trajectory

if TYPE_CHECKING:
    from hubextrap.api.prepare import Settings
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory.checkpoint import Trajectory


def backtest(
    run: Trajectory | Recipe | Scan,
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Backtest:
    """Predict every observed checkpoint from every earlier one, by every method, and measure the error.

    Args:
        run: a scan, from which this takes seconds; or a trajectory or recipe, whose weights are read once. A
            recipe's own rules are tried too, under the name ``recipe``.

    Raises:
        StepError: fewer than three checkpoints.
        HubExtrapError: see `scan`.
    """
    refuse_merge_settings(settings, "a backtest")
    tried = list(candidates())
    if isinstance(run, Scan):
        found = run
    else:
        from hubextrap.recipe import Recipe

        if isinstance(run, Recipe):
            tried.append(BacktestCandidate("recipe", run.rules))
            run = find_recipe_trajectory(run, progress)
        _check(run.steps)
        found = scan_for(run, backtest_memory(run.steps), settings=settings, progress=progress)
    _check(found.steps)
    return backtest_table(found.gram_table, tried, dtypes=found.dtypes)


def _check(steps: tuple[int, ...]) -> None:
    if len(steps) < 3:
        raise StepError(
            f"a backtest needs three checkpoints, two for a line and one to check it, and {len(steps)} are "
            "there; observe more of it"
        )
