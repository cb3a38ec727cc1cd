"""Which clock a run goes by: what is said of it, or what lies beside its last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hubextrap.clocks import STEPS, RateClock, parse_schedule, read_rate_file, read_trainer_state
from hubextrap.containment import shown
from hubextrap.errors import ClockError, CorruptFile, RecipeError, SourceError, wrong_argument
from hubextrap.methods.checking import MAX_STEP, check_steps
from hubextrap.recipe.targets import FullRateTarget
from hubextrap.tensors.interfaces import PUSHED_FOLDER, SMALL_FILE, STATE_FILE
from hubextrap.trajectory.checkpoint import is_untouched_base

if TYPE_CHECKING:
    from hubextrap.clocks import Clock, ClockChoice, RateHistory
    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Checkpoint, Trajectory

Beside: TypeAlias = "tuple[RateHistory | None, str]"
"""Rates that were found beside a checkpoint; where none were though the rate may have changed, why."""
_SCHEDULED = ("scheduler.pt", "training_args.bin")
"""What shows that a trainer had a schedule; both are pickles, which are not read."""
REMEDY = (
    "state the clock: trajectory.clock in a recipe or --clock takes steps, learning_rate, or a file of step "
    "and learning_rate; in a recipe a schedule too, {schedule: cosine, total_steps: 400}"
)


def target_at(clock: Clock, steps: Sequence[int], horizon: float, what: str) -> dict[str, Any]:
    """A target so far ahead, as ``parameters`` say it: the nearest step; full-rate steps where the clock
    never gets there.

    Args:
        steps: those that were observed.
        what: asked for it.

    Raises:
        RecipeError: it is behind the last checkpoint, or too far for a step.
    """
    times, last = clock.times(steps), steps[-1]
    time = times[-1] + horizon * (times[-1] - times[0])
    if not horizon >= 0 or not time <= MAX_STEP:
        raise RecipeError(
            f"{what} {horizon:g}: a horizon is (target − last)/(last − first), so 0 is step {last}, 1 as "
            f"far again as was observed, and the step at most {MAX_STEP}; give one from 0 on"
        )
    step = clock.step_at(time)
    if step is not None:
        return {"target_step": (max(round(step), last),), "target": None}
    count = max(1, round(time - times[-1]))
    return {"target_step": (last + count,), "target": FullRateTarget(full_rate_steps=(count,))}


def target_times(clock: Clock, steps: Sequence[int], recipe: Recipe) -> tuple[float, ...]:
    """The times of a recipe's targets, which is settled at the last of ``steps``.

    Raises:
        StepError: a target lies before the last checkpoint.
        ClockError: the rate up to a target is not known, or is 0 before that.
    """
    times = clock.times(steps)  # what is wrong with the checkpoints' own is said first
    if (target := recipe.parameters.target) is not None:
        return tuple(times[-1] + count for count in target.full_rate_steps)
    for step in recipe.target_steps:
        check_steps(steps, step)
    return tuple(clock.time_of(step) for step in recipe.target_steps)


def chosen_clock(choice: ClockChoice, name: str, beside: Callable[[], Beside], progress: Progress) -> Clock:
    """The clock that was asked for.

    Args:
        choice: ``steps``; ``learning_rate``, read beside the last checkpoint; ``auto``, which is that where
            the rate is found and really changed, and else steps; a schedule's parameters; or a file.
        name: of the last checkpoint.
        beside: `rates_beside`.

    Raises:
        ClockError: there is no such history, or it does not go with the checkpoints.
        ReferenceNotFound, SourceError: the Hub does not say.
    """
    if choice not in ("auto", "learning_rate", "steps"):
        return _stated_clock(choice, lambda: beside()[0], progress)
    history, problem = beside()
    if choice == "steps":
        if history is not None and history.changes:
            progress.say("note: the learning rate changed in this run, and steps were asked for as its clock")
        return STEPS
    if history is None and choice == "learning_rate":
        raise ClockError(
            f"clock: learning_rate: {problem or f'{name}: there is no {STATE_FILE} in it'}; {REMEDY}"
        )
    if problem:
        progress.warn(f"{problem}, so steps are the clock; if the learning rate changed, {REMEDY}")
    return _clock_by(history, choice, progress)


def _clock_by(history: RateHistory | None, choice: ClockChoice, progress: Progress) -> Clock:
    """That of rates that were found, if any were: ``auto`` takes them where they really changed."""
    if history is None or (choice == "auto" and not history.changes):
        return STEPS
    return _told(RateClock(history), progress)


def _check_against(history: RateHistory | None, choice: Mapping[str, Any], progress: Progress) -> None:
    """Warn of a stated schedule that is not that of the rates beside the last checkpoint."""
    try:
        RateClock(history, parse_schedule(choice))
    except ClockError as error:
        progress.warn(str(error))


def rates_beside(trajectory: Trajectory, source_at: Callable[[int], Source]) -> Beside:
    """What the last checkpoint's trainer state says of the rate up to its step.

    Args:
        source_at: opens the checkpoint at a place of the trajectory.

    Raises:
        ReferenceNotFound, SourceError: the Hub does not say; that must not change a prediction.
    """
    last, place = trajectory.last, len(trajectory.checkpoints) - 1
    source = source_at(place)
    found = state_beside(last, source)
    if isinstance(found, str):
        return None, found
    if found is not None:
        name, content = found
        try:
            history = read_trainer_state(content, name, last.step).up_to(last.step)
        except CorruptFile as error:
            return None, _without_remedy(error)
        return (history, "") if history.steps else (None, f"{name}: no learning rate was logged in it")
    files = source.files()
    for earlier in reversed(range(place)):
        if is_untouched_base(checkpoint := trajectory.checkpoints[earlier]):
            continue
        # a request each, on the Hub: the newest but one answers for all
        if (checkpoint.repo is None or earlier == place - 1) and STATE_FILE in source_at(earlier).files():
            return None, f"{STATE_FILE} lies beside step {checkpoint.step}, and none beside step {last.step}"
    if scheduled := next((file for file in _SCHEDULED if file in files), None):
        what = f"{scheduled} beside step {last.step} is a pickle, which is not read"
        return None, f"{what}, and there is no {STATE_FILE}"
    return None, ""


def state_beside(checkpoint: Checkpoint, source: Source) -> tuple[str, bytes] | str | None:
    """Name and content of the trainer's state beside a checkpoint; why it is not read; None without one.

    Raises:
        ReferenceNotFound, SourceError: the Hub does not say.
    """
    files = source.files()
    for file in (STATE_FILE, f"{PUSHED_FOLDER}/{STATE_FILE}"):
        if (info := files.get(file)) is None:
            continue
        name = f"{checkpoint.name}/{file}"
        if info.problem is not None or info.size > SMALL_FILE:
            return f"{name}: {info.problem or f'is larger than {SMALL_FILE:,} bytes'}"
        try:
            return name, source.read_file(file)
        except SourceError as error:
            if checkpoint.repo is not None:
                raise
            return _without_remedy(error)
    return None


def _without_remedy(error: Exception) -> str:
    return str(error).partition("; ")[0]


def clock_of_scan(choice: ClockChoice, scan: Scan, progress: Progress) -> Clock:
    """`chosen_clock` for what a scan holds, its weights out of reach.

    Raises:
        ClockError: the scan holds no learning rates, and they were asked for.
    """
    if choice in ("auto", "learning_rate"):
        if scan.rates is None and choice == "learning_rate":
            raise ClockError(
                f"clock: learning_rate: the scan holds no learning rates: there was no {STATE_FILE} beside "
                f"the last checkpoint, or an older hubextrap made it; scan again, or {REMEDY}"
            )
        return _clock_by(scan.rates, choice, progress)
    if choice == STEPS.name:
        return STEPS
    return _stated_clock(choice, lambda: scan.rates, progress)


def _stated_clock(
    choice: ClockChoice, history: Callable[[], RateHistory | None], progress: Progress
) -> Clock:
    """That of a schedule, which is held against the rates that were found, or of a file."""
    if isinstance(choice, Mapping):
        clock = _told(RateClock(None, parse_schedule(choice)), progress)
        _check_against(history(), choice, progress)
        return clock
    if not isinstance(choice, (str, os.PathLike)):
        raise wrong_argument("clock", "steps, learning_rate, a schedule or the path of a file", choice)
    path = Path(str(choice))
    if not choice or not path.exists():
        raise ClockError(f"clock: {shown(str(choice))}: there is no such file; {REMEDY}", file=str(choice))
    return _told(RateClock(read_rate_file(path)), progress)


def _told(clock: Clock, progress: Progress) -> Clock:
    progress.say(f"clock: {clock.in_words()}")
    return clock
