"""What time it is at a training step: the step itself, or the learning rate cumulated up to it.

Weights move with the learning rate and not with the step counter. So methods, rehearsals and horizons count
full-rate steps: τ(s) = Σ of the rates of the updates up to step s, divided by the largest of them. At a
constant rate τ(s) = s. Checkpoints keep their step as their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, TypeAlias, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Self


ClockChoice: TypeAlias = str | Mapping[str, Any]
"""How a clock is asked for: ``auto``, ``steps``, ``learning_rate``, a schedule's parameters, or a file."""


class Timeline(tuple[float, ...]):
    """The times of checkpoints, in full-rate steps: what methods take for steps where a clock is none.

    A part of it is a timeline too.
    """

    steps: tuple[int, ...]
    """What the checkpoints are called."""

    def __new__(cls, times: Iterable[float], steps: Iterable[int]) -> Self:
        made = super().__new__(cls, times)
        made.steps = tuple(steps)
        assert len(made) == len(made.steps)
        return made

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> float: ...
    @overload
    def __getitem__(self, key: slice, /) -> Timeline: ...
    def __getitem__(self, key: SupportsIndex | slice, /) -> float | Timeline:
        if isinstance(key, slice):
            return Timeline(super().__getitem__(key), self.steps[key])
        return super().__getitem__(key)

    def __getnewargs__(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        return tuple(self), self.steps


def names_of(times: Sequence[float]) -> tuple[int, ...]:
    """The steps that checkpoints are called by, of their times on whatever clock."""
    return times.steps if isinstance(times, Timeline) else tuple(times)  # type: ignore[arg-type]


def in_words(times: Sequence[float], time: float) -> str:
    """A time as messages say it: ``step 425``, or ``88.4 full-rate steps after step 200``."""
    if not isinstance(times, Timeline):
        return f"step {time:g}"
    if time in times:
        return f"step {times.steps[times.index(time)]}"
    return f"{time - times[-1]:.4g} full-rate steps after step {times.steps[-1]}"


def horizon_of(times: Sequence[float], time: float | None) -> float | None:
    """(time − last) / (last − first), where there is a way and a time."""
    first, last = times[0], times[-1]
    return None if time is None or last == first else (time - last) / (last - first)


class Clock(Protocol):
    """Step → time, never falling, and what is known of the future."""

    @property
    def name(self) -> str:
        """``steps`` or ``learning_rate``."""
        ...

    def times(self, steps: Sequence[int]) -> tuple[float, ...]:
        """Those of observed checkpoints: a `Timeline`, but the steps themselves of the clock of that name.

        Raises:
            ClockError: one lies beyond what is known; or two have one time, as nothing was trained between.
        """
        ...

    def time_of(self, step: float) -> float:
        """That of any step, also of one to come.

        Raises:
            ClockError: the rate that will be is not known, and what to state.
        """
        ...

    def step_at(self, time: float) -> float | None:
        """The first step at which it is that time; None where it never is, or is not known."""
        ...

    def known_at(self, step: int) -> Clock:
        """The clock as it was known at an earlier step: nothing that was observed behind it counts."""
        ...

    def in_words(self) -> str:
        """In one line, for every output: the schedule, where from, and the misfit."""
        ...

    def as_json(self) -> dict[str, Any] | None:
        """What a provenance says of it; None for steps."""
        ...


def step_in_words(clock: Clock, steps: Sequence[int], time: float) -> str:
    """``step 425``; or ``step 400 + 50 full-rate steps``, where the clock never gets there.

    Args:
        steps: of the observed checkpoints.
    """
    if (step := clock.step_at(time)) is not None:
        return f"step {step:.0f}"
    last = steps[-1]
    return f"step {last} + {time - clock.times(steps)[-1]:.0f} full-rate steps"


@dataclass(frozen=True)
class StepClock:
    """The step is the time: right where the rate is constant."""

    name = "steps"

    def times(self, steps: Sequence[int]) -> tuple[float, ...]:
        return tuple(steps)

    def time_of(self, step: float) -> float:
        return step

    def step_at(self, time: float) -> float | None:
        return time

    def known_at(self, step: int) -> Clock:
        return self

    def in_words(self) -> str:
        return "steps"

    def as_json(self) -> dict[str, Any] | None:
        return None


STEPS: Clock = StepClock()
