"""Which clock a run goes by: what is said of it, or what lies beside its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.clocks import STEPS, RateClock, parse_schedule, read_rate_file, read_trainer_state
from hubextrap.errors import ClockError, HubExtrapError

if TYPE_CHECKING:
    from hubextrap.clocks import Clock, ClockChoice, RateHistory
    from hubextrap.progress import Progress
    from hubextrap.scans import Scan
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory import Trajectory

STATE_FILE = "trainer_state.json"
"""What transformers' Trainer leaves beside each checkpoint."""
_SCHEDULED = ("scheduler.pt", "training_args.bin")
"""What shows that a trainer had a schedule; both are pickles, which are not read."""
REMEDY = (
    "state the clock: trajectory.clock in a recipe or --clock takes steps, learning_rate, or a file of step "
    "and learning_rate; in a recipe a schedule too, {schedule: cosine, total_steps: 400}"
)


def chosen_clock(
    choice: ClockChoice, trajectory: Trajectory, source_at: Callable[[int], Source], progress: Progress
) -> Clock:
    """The clock that was asked for.

    Args:
        choice: ``steps``; ``learning_rate``, read beside the last checkpoint; ``auto``, which is that where
            the rate is found and really changed, and else steps; a schedule's parameters; or a file.
        source_at: opens the checkpoint at a place of the trajectory.

    Raises:
        ClockError: there is no such history, or it does not go with the checkpoints.
        CorruptFile, ReferenceNotFound, SourceError: the file cannot be read.
    """
    if choice in ("auto", "learning_rate", "steps"):
        clock = STEPS
        history, problem = rates_beside(trajectory, source_at)
        if choice == "steps" and history is not None and history.changes:
            progress.say("note: the learning rate changed in this run, and steps were asked for as its clock")
        if choice == "steps":
            return STEPS
        if history is None and choice == "learning_rate":
            raise ClockError(f"clock: learning_rate: {problem or _nothing_beside(trajectory)}; {REMEDY}")
        if history is None and problem:
            progress.say(
                f"warning: {problem}, so steps are the clock; if the learning rate changed, {REMEDY}"
            )
        if history is not None and (choice == "learning_rate" or history.changes):
            clock = RateClock(history)
    else:
        clock = _stated_clock(choice)
    return _told(clock, progress)


def rates_beside(
    trajectory: Trajectory, source_at: Callable[[int], Source]
) -> tuple[RateHistory | None, str]:
    """What the last checkpoint's trainer state says of the rate up to its step; where nothing is to be had
    though the rate may have changed, why."""
    last = trajectory.last
    try:
        source = source_at(len(trajectory.checkpoints) - 1)
        files = source.files()
        if STATE_FILE in files:
            history = read_trainer_state(source.read_file(STATE_FILE), f"{last.name}/{STATE_FILE}")
            return history.up_to(last.step), ""
    except HubExtrapError as error:
        return None, str(error).partition("; ")[0]
    for place, checkpoint in enumerate(trajectory.checkpoints[:-1]):
        if checkpoint.repo is None and STATE_FILE in source_at(place).files():
            return None, f"{STATE_FILE} lies beside step {checkpoint.step}, and none beside step {last.step}"
    if scheduled := next((name for name in _SCHEDULED if name in files), None):
        what = f"{scheduled} beside step {last.step} is a pickle, which is not read"
        return None, f"{what}, and there is no {STATE_FILE}"
    return None, ""


def _nothing_beside(trajectory: Trajectory) -> str:
    return f"{trajectory.last.name}: there is no {STATE_FILE} in it"


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
        clock = STEPS
        if scan.rates is not None and (choice == "learning_rate" or scan.rates.changes):
            clock = RateClock(scan.rates)
    else:
        clock = _stated_clock(choice)
    return _told(clock, progress)


def _stated_clock(choice: ClockChoice) -> Clock:
    """That of a schedule, a file, or steps."""
    if isinstance(choice, Mapping):
        return RateClock(None, parse_schedule(choice))
    return STEPS if choice == STEPS.name else RateClock(read_rate_file(Path(str(choice))))


def _told(clock: Clock, progress: Progress) -> Clock:
    if clock.name != STEPS.name:
        progress.say(f"clock: {clock.in_words()}")
    return clock
