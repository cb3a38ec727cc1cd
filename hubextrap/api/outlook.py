"""What the past of a run says of each target: what error to expect, how far to trust the method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.errors import MethodError
from hubextrap.figures import with_stderr
from hubextrap.methods import farthest_horizon, longest_horizon, rehearse
from hubextrap.statistics import (
    HORIZONS,
    BacktestCandidate,
    Expectation,
    JudgedTarget,
    RunVerdict,
    Trust,
    at_the_task,
    brief_backtest,
    expect_of_last,
    is_rounded,
    judge_run,
    not_judged,
    trust,
)
from hubextrap.statistics.backtesting import BRIEF_CHECKPOINTS
from hubextrap.statistics.judgement import is_beyond
from hubextrap.statistics.verdict import TRUSTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hubextrap.opening import Run
    from hubextrap.recipe import Recipe
    from hubextrap.statistics import Backtest, GramTable

FEW_ORIGINS = 3
"""Earlier checkpoints below which an expectation is called thin."""
_LONG = "take long to rehearse; `hubextrap backtest` does"
_UNKNOWN = (
    "the expected error is not known, as this method needs no weights and they were not compared; give "
    "--scan FILE (`hubextrap scan` makes it) or max_expected_error, or ask `hubextrap backtest`"
)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the past of a run says of one target."""

    expected: Expectation
    """Unknown where the weights were not compared."""
    trusted: Trust | None
    """None where nothing says it."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What is not known, and what would say it."""
    verdict: RunVerdict | None
    """On the prediction of this target; None where no rule predicts motion."""
    sampled: int | None = None
    """Weights of each tensor that the table is of; None where it is of all, or there is none."""


def check_rehearsable(recipes: Iterable[Recipe], run: Run, force: bool) -> None:
    """Refuse a target beyond all that the past of the run can rehearse; steps alone say it.

    A run of fewer than three checkpoints has no past, which is noted: ExPO takes no more than two.

    Raises:
        MethodError: names the farthest step that was rehearsed, unless it is forced.
    """
    targets = [
        (recipe, target, time)
        for recipe in recipes
        for target, time in zip(recipe.target_steps, run.target_times(recipe), strict=True)
    ]
    for recipe, target, time in targets:
        if not force and _is_beyond(run, time) and _moves(recipe, run, time):
            raise MethodError(
                f"{_beyond(run, _named(recipe, run, target), time)}; choose a target up to there, or predict "
                "it all the same with --force (force=True of MergeOptions)",
                step=target,
            )


def check_sayable(recipe: Recipe, run: Run) -> None:
    """Refuse a target that ``max_expected_error`` forbids whatever the weights are: no past speaks for it.

    Raises:
        MethodError: names the step.
    """
    for target, time in zip(recipe.target_steps, run.target_times(recipe), strict=True):
        if len(rehearse(run.times, time)) == 0:
            _check_limit(recipe, run, target, Expectation(None, None))


def outlooks_of(
    recipe: Recipe, run: Run, table: GramTable | None, dtypes: Iterable[str]
) -> tuple[Outlook, ...]:
    """One outlook per target.

    Args:
        table: of the weights; None where it is not known.
        dtypes: in which they are stored.

    Raises:
        MethodError: ``max_expected_error`` is exceeded.
    """
    times = run.target_times(recipe)
    rounded = table is not None and is_rounded(table, dtypes)
    moving = [_moves(recipe, run, time) for time in times]
    past = None
    if table is not None and any(moving):
        past = brief_backtest(recipe.rules, table, rounded, HORIZONS[-1])
    found, sampled = [], None if table is None else table.sampled
    for target, time, moves in zip(recipe.target_steps, times, moving, strict=True):
        expected = Expectation(None, None)
        if table is not None:
            expected = expect_of_last(recipe.rules, table, time, rounded)
            _check_limit(recipe, run, target, expected)
        if not moves:
            found.append(Outlook(expected, None, (), (), None, sampled))
            continue
        verdict = _verdict(recipe, run, past, target, time, expected)
        trusted = None if past is None else trust(verdict, run.steps[-1])
        warnings = tuple(_warnings(recipe, run, table is not None, target, time, expected, trusted))
        if verdict.turns is not None:
            warnings = (*warnings, verdict.turns)
        notes = () if recipe.space == "logits" else _notes(recipe, run, table, trusted, verdict)
        found.append(Outlook(expected, trusted, warnings, notes, verdict, sampled))
    return tuple(found)


def _verdict(
    recipe: Recipe, run: Run, past: Backtest | None, target: int, time: float, expected: Expectation
) -> RunVerdict:
    """On one target; not judged where nothing was rehearsed, and why."""
    judged = JudgedTarget(
        _named(recipe, run, target),
        run.horizon_at(time),
        expected.relative_error,
        len(rehearse(run.times, time)),
        expected.stderr,
    )
    if past is None:
        return not_judged("Not judged: the weights were not compared; give --scan FILE", run.steps, judged)
    if len(run.steps) > BRIEF_CHECKPOINTS:
        return not_judged(f"{len(run.steps)} checkpoints {_LONG}", run.steps, judged)
    (first, *others) = recipe.rules
    named = BacktestCandidate.of(first.method, first.damping, **first.parameters).name
    return judge_run(past, target=judged, method="recipe" if others else named)


def _notes(
    recipe: Recipe, run: Run, table: GramTable | None, trusted: Trust | None, verdict: RunVerdict
) -> tuple[str, ...]:
    """What nothing says of a target that a method moves towards."""
    if len(run.steps) < 3:
        no_past = (
            f"{len(run.steps)} checkpoints have no past to rehearse a prediction in, so nothing says what "
            "error to expect, or how far to trust it; evaluate it beside the last checkpoint before any use"
        )
        return (no_past,)
    if table is None:
        return (_UNKNOWN,)
    if trusted is not None:
        return ()
    why = f"{verdict.headline[0].lower()}{verdict.headline[1:]}"
    return (f"up to which step the past of this run trusts {_method(recipe)} is not known: {why}",)


def _check_limit(recipe: Recipe, run: Run, target: int, expected: Expectation) -> None:
    """Refuse what the recipe does not want."""
    error = expected.relative_error
    limit, last, named = recipe.parameters.max_expected_error, run.steps[-1], _named(recipe, run, target)
    if limit is None:
        return
    if error is None and target > last:
        raise MethodError(
            f"{_unsaid(run, named)}, so max_expected_error {limit:g} cannot be kept; choose another target",
            step=target,
        )
    if error is not None and error > limit:
        raise MethodError(
            f"{named}: the expected relative error is {with_stderr(error, expected.stderr, 3)} (1 is that of "
            f"step {last} as it is), above max_expected_error {limit:g}; choose a nearer target or another "
            "method (`hubextrap backtest` compares them)",
            step=target,
        )


def _warnings(
    recipe: Recipe,
    run: Run,
    compared: bool,
    target: int,
    time: float,
    expected: Expectation,
    trusted: Trust | None,
) -> Iterator[str]:
    """Of a target that a method moves towards. Args: compared: whether the weights were."""
    horizon, error, whom = run.horizon_at(time), expected.relative_error, _method(recipe)
    named = _named(recipe, run, target)
    if len(run.steps) < 3:
        return  # what is not known is noted
    at = f"{named} (horizon {horizon:.3g})"
    if _is_beyond(run, time):
        yield f"{_beyond(run, named, time)}; evaluate it before any use"
    elif compared and error is None:
        yield _unsaid(run, named)
    if trusted is not None and trusted.horizon == 0:
        yield (
            f"{at}: the past of this run trusts {whom} nowhere beyond {trusted.said}: already at the "
            f"shortest horizons its mean error was above {TRUSTED:g}; evaluate before any use"
        )
    elif trusted is not None and horizon is not None and is_beyond(horizon, trusted.horizon, run.times):
        yield (
            f"{at} lies beyond {trusted.said} (horizon {trusted.horizon:g}), up to which the past of this "
            f"run trusts {whom}; evaluate before any use"
        )
    if error is not None and (said := at_the_task(error)):
        yield f"{named}: the expected error is {with_stderr(error, expected.stderr, 3)}, and {said}"
    origins = len(np.unique(rehearse(run.times, time).origins))
    if error is not None and origins < FEW_ORIGINS:
        yield (
            f"{named} lies so far ahead that only {origins} earlier checkpoint{'s' * (origins > 1)} "
            "could rehearse it: the expected error rests on little"
        )


def _is_beyond(run: Run, time: float) -> bool:
    """Whether nothing like so far ahead was there to be predicted, in a run that has a past."""
    horizon = run.horizon_at(time)
    return len(run.steps) > 2 and horizon is not None and horizon > farthest_horizon(run.times)


def _beyond(run: Run, named: str, time: float) -> str:
    times, farthest = run.times, farthest_horizon(run.times)
    there = run.step_in_words(math.floor(times[-1] + farthest * (times[-1] - times[0])))
    return (
        f"{named} (horizon {run.horizon_at(time):.3g}) lies beyond all that the past of this run can "
        f"rehearse: it has seen horizons up to {longest_horizon(times):.3g}, which speak for none beyond "
        f"{there} (horizon {farthest:.3g})"
    )


def _unsaid(run: Run, named: str) -> str:
    return (
        f"{named}: the past of this run cannot say what error to expect: in it, nothing as far "
        f"ahead as that from step {run.steps[-1]} was there to be predicted"
    )


def _named(recipe: Recipe, run: Run, target: int) -> str:
    """What messages call a target: the step; where the run has none such, how far away it is."""
    last = run.steps[-1]
    if recipe.parameters.target is None:
        return f"step {target}"
    return f"step {last} + {target - last} full-rate steps"


def _moves(recipe: Recipe, run: Run, time: float) -> bool:
    """Whether any rule predicts motion to a target, so that it can go wrong by going too far."""
    return any(rule.predicts_motion(run.times, time) for rule in recipe.rules)


def _method(recipe: Recipe) -> str:
    """What messages call the rules."""
    methods = list(dict.fromkeys(rule.method for rule in recipe.rules))
    return methods[0] if len(methods) == 1 else "these rules"
