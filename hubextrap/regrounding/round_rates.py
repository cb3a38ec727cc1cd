"""The learning rates of a round, as its trainer left them beside the checkpoint, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubextrap.clocks import RateClock, parse_schedule, read_rate_file, read_trainer_state
from hubextrap.containment import shown
from hubextrap.errors import ClockError, HubExtrapError
from hubextrap.regrounding.rates import Rates
from hubextrap.tensors import LocalSource
from hubextrap.tensors.interfaces import STATE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubextrap.clocks import RateHistory
    from hubextrap.regrounding.jumps import WindowClock

NAMED = ("auto", "steps", "learning_rate")


def window_clock(choice: str | Mapping[str, Any]) -> WindowClock:
    """What the recipe's choice means to windows: a file, and a schedule, are the learning rate."""
    return choice if choice in NAMED else "learning_rate"  # type: ignore[return-value]


def stated_clock(choice: str | Mapping[str, Any]) -> RateClock | None:
    """The clock of a file or a schedule; None where the rates are the trainer's to say.

    Raises:
        ClockError: the file, or the schedule, is none.
    """
    if isinstance(choice, Mapping):
        return RateClock(None, parse_schedule(choice))
    if choice in NAMED:
        return None
    path = Path(choice)
    if not path.exists():
        raise ClockError(
            f"clock: {shown(choice)}: there is no such file; reground.clock and --clock take auto, steps, "
            "learning_rate, or a file of step and learning_rate; the recipe a schedule too, {schedule: "
            "cosine, total_steps: 400}",
            file=choice,
        )
    return RateClock(read_rate_file(path))


def rates_of_round(
    choice: str | Mapping[str, Any], checkpoint: Path, first: int, steps: int, say: Callable[[str], None]
) -> tuple[Rates | None, float | None]:
    """The rates of the updates from RL step ``first`` on, and the rate that a jump stands for.

    That is the last update's; where the trainer's schedule ends with the round, or begins anew in every one,
    the mean, as what comes is rounds like this one. (None, None) where ``auto`` finds none; if there is a
    file, it says why.

    Raises:
        ClockError: the rates were asked for, or stated, and do not cover the round.
        CorruptFile, SourceError: the trainer's file cannot be read.
    """
    if choice == "steps":
        return None, None
    try:
        if (stated := stated_clock(choice)) is not None:
            return _between(stated, first, first + steps)
        history = _beside(checkpoint)
        if history is None:
            if choice == "auto":
                return None, None
            raise ClockError(
                f"clock: learning_rate: there is no {STATE_FILE} in {checkpoint}; make the trainer "
                "save it, or give a file of step and learning_rate, a schedule, or steps"
            )
        return _of_history(history, first, steps)
    except HubExtrapError as error:
        if choice != "auto":
            raise
        say(f"warning: the learning rates of this round are not known, so it counts by steps: {error}")
        return None, None


def _beside(checkpoint: Path) -> RateHistory | None:
    with closing(LocalSource(checkpoint)) as source:
        if STATE_FILE not in source.files():
            return None
        return read_trainer_state(source.read_file(STATE_FILE), str(checkpoint / STATE_FILE))


def _of_history(history: RateHistory, first: int, steps: int) -> tuple[Rates, float]:
    last = history.steps[-1] if history.steps else 0
    if first < last <= first + steps:
        counted_from = first
    elif 0 < last <= steps:  # the trainer counts from the start of each round
        counted_from = 0
    else:
        seen = f"end at step {last}" if history.steps else "are none"
        raise ClockError(
            f"{history.source}: its learning rates {seen}, but the round is steps {first + 1} to "
            f"{first + steps} of the run, or 1 to {steps} of its own; make the trainer log them "
            "(logging_steps), give a file of step and learning_rate, or choose steps as the clock"
        )
    rates, rate = _between(RateClock(history), counted_from, counted_from + steps)
    anew = history.max_steps == counted_from + steps or (first > 0 and counted_from == 0)
    return rates, rates.total / rates.steps if anew else rate


def _between(clock: RateClock, first: int, last: int) -> tuple[Rates, float]:
    """The rates from a step to another, and the next one's where it is known, else the last one's."""
    peak = clock.as_json().get("peak_rate") or 1.0
    rates = Rates()
    for step in range(first + 1, last + 1):
        rates = rates.plus(_rate(clock, step, peak))
    known = clock.history is None or clock.history.steps[-1] > last
    return rates, _rate(clock, last + 1 if known else last, peak)


def _rate(clock: RateClock, step: int, peak: float) -> float:
    return (clock.time_of(step) - clock.time_of(step - 1)) * peak
