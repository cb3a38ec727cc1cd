"""`backtest`: every method at every origin of a run, held against what came later."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.api.scanning import scan_run
from hubextrap.errors import RecipeError, StepError
from hubextrap.given import check_reads, names_scan, run_of, sample_choice
from hubextrap.opening import ReadingOptions, Run
from hubextrap.progress import SilentProgress
from hubextrap.scans import Scan
from hubextrap.statistics import Backtest, BacktestCandidate, backtest_memory, backtest_table, candidates
from hubextrap.timing import clock_of_scan
from hubextrap.trajectory import Trajectory

if TYPE_CHECKING:
    from pathlib import Path

    from hubextrap.clocks import ClockChoice
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.sample_sizes import SampleChoice
    from hubextrap.trajectory import TrajectoryOptions


def backtest(
    run: Trajectory | Recipe | Scan | Path | str,
    *,
    options: TrajectoryOptions | None = None,
    settings: ReadingOptions | None = None,
    sample: SampleChoice = "auto",
    clock: ClockChoice | None = None,
    progress: Progress | None = None,
) -> Backtest:
    """Predict every observed checkpoint from every earlier one, by every method, and measure the error.

    Args:
        run: a scan or its file (.safetensors), from which this takes seconds; or a trajectory, the reference
            of one, a recipe or its file (.yaml), whose weights are read once. A recipe's own rules are tried
            too, under the name ``recipe``.
        options: which checkpoints of a reference.
        sample: how many weights of each tensor to look at; ``exact`` for all; ``auto`` for a sample of large
            runs on the Hub and all weights of others.
        clock: what time is counted by, instead of what the recipe says; see `timing.chosen_clock`.

    Raises:
        StepError: fewer than three checkpoints.
        HubExtrapError: see `scan`.
    """
    tried, sample = list(candidates()), sample_choice(sample, settings)
    if isinstance(run, (str, os.PathLike)) and names_scan(str(run)):
        run = Scan.load(run)
    if isinstance(run, Scan) and options is not None:
        raise RecipeError("options: have no effect on a scan, which holds the steps that it holds")
    if isinstance(run, Scan):
        if settings is not None:
            raise RecipeError("settings have no effect on a backtest of a scan, which reads no weights")
        check_reads(sample)
        found = run
        chosen = clock_of_scan(clock or "auto", found, progress or SilentProgress())
    else:
        run = run_of("run", run, options, progress)
        if not isinstance(run, Trajectory):
            tried.append(BacktestCandidate("recipe", run.rules))
        with Run.of(run, settings, clock=clock, progress=progress) as opened:
            _check(opened.steps)
            found = scan_run(opened, sample=sample, afterwards=backtest_memory(opened.times))
            chosen = opened.clock
    _check(found.steps)
    return backtest_table(replace(found.gram_table, clock=chosen), tried, dtypes=found.dtypes)


def _check(steps: tuple[int, ...]) -> None:
    if len(steps) < 3:
        raise StepError(
            f"a backtest needs three checkpoints, two for a line and one to check it, and {len(steps)} are "
            "there; observe more of it"
        )
