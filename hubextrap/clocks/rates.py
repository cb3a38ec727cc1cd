"""The clock of the learning rate: full-rate steps, from a history of rates, a schedule, or both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.clocks.clock import Timeline
from hubextrap.clocks.families import trapezoids
from hubextrap.clocks.history import RateHistory
from hubextrap.clocks.recognising import STATE, Recognised, recognise
from hubextrap.errors import ClockError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from hubextrap.clocks.schedules import Schedule

    Array = npt.NDArray[np.float64]

_GRID = 2.0**-20
"""Times are multiples of it: sums and cosines differ in their last digits from processor to processor."""
_NODES = 65_537
_FAR = 10**12
_OFF = 0.02
_NOTHING = 1e-9


class RateClock:
    """Time by the learning rate: the area under a line from rate to rate, divided by their peak.

    At a constant rate it is the step exactly. What comes behind the last entry is the stated schedule's or,
    if none is, that of the schedule which the entries follow; of one that ends, the last rate stays. Which
    update an entry tells of differs (`RateHistory`): the area is half a step beside the sum, to either side.
    """

    name = "learning_rate"

    def __init__(self, history: RateHistory | None, schedule: Schedule | None = None) -> None:
        """
        Args:
            history: what was logged; its own entries count where a schedule is stated too.
            schedule: the one that is stated; else it is recognised as soon as it is needed.

        Raises:
            ClockError: neither is given; or the stated one does not fit the history.
        """
        if history is None and schedule is None:
            raise ClockError(f"the learning rate is not known; {STATE}")
        self.history, self.schedule = history, schedule
        self._logged = history or RateHistory((), ())
        self._known: dict[int, RateClock] = {}
        self._followed: Recognised | str | None = None
        self._line: tuple[Array, Array, Array] | None = None
        if schedule is not None and (followed := self._follow_stated()).misfit > _OFF:
            assert history is not None
            raise ClockError(
                f"the stated schedule ({schedule.name}) does not fit the learning rates of "
                f"{history.source}: it is off by {followed.misfit:.0%} of their peak; correct it, "
                "or give a file of rates as the clock, with the rates to come"
            )

    # what is known

    @property
    def followed(self) -> Recognised:
        """The schedule that the rates to come are from, stated or recognised.

        Raises:
            ClockError: none was stated, and none recognised.
        """
        if self._followed is None:
            try:
                self._followed = self._follow_stated() if self.schedule else recognise(self._logged)
            except ClockError as error:
                self._followed = str(error)
        if isinstance(self._followed, str):
            raise ClockError(self._followed)
        return self._followed

    def _follow_stated(self) -> Recognised:
        """The stated schedule, to the scale of the history; logged as the rate of either update."""
        assert self.schedule is not None
        if not self._logged.steps:
            return Recognised(self.schedule, 1.0, 0, 0.0)
        steps, rates = _arrays(self._logged)
        fits = []
        for shift in (0, 1):
            shape = self.schedule.rates(self._within(steps - shift))
            scale = float(shape @ rates) / max(float(shape @ shape), 1e-300)
            scale = scale if scale > 0 else float(rates.max())
            off = float(np.sqrt(np.mean((rates - scale * shape) ** 2)))
            fits.append(Recognised(self.schedule, scale, shift, off / max(scale, float(rates.max()))))
        return min(fits, key=lambda fit: (round(fit.misfit, 9), fit.shift))

    def _within(self, steps: Array) -> Array:
        """Of a schedule that ends, the last rate stays: transformers' cosines would rise again."""
        total = self.schedule.total_steps if self.schedule else None
        return np.clip(steps, 0, math.inf if total is None else total)

    def _future(self) -> Recognised | None:
        try:
            return self.followed
        except ClockError:
            return None

    def _nodes(self) -> tuple[Array, Array, Array]:
        """Steps in order, the rate at each as a share of the peak, and the time: a line from node to node."""
        if self._line is None:
            followed = self._future()
            steps, rates = self._unscheduled() if followed is None else self._scheduled(followed)
            peak = max(0.0 if followed is None else followed.peak, *self._logged.rates, 0.0)
            shares = rates / peak if peak else rates
            self._line = steps, shares, trapezoids(steps, shares) if len(steps) else shares
        return self._line

    def _unscheduled(self) -> tuple[Array, Array]:
        """By the entries alone, and a little behind them, as checkpoints are saved there."""
        steps, rates = _arrays(self._logged)
        if not len(steps):
            return steps, rates
        before, first = _led_back(steps, rates, float(rates.max()))
        if len(steps) > 1:
            further = 2 * steps[-1] - steps[-2]
            steps, rates = np.append(steps, further), np.append(rates, max(0.0, 2 * rates[-1] - rates[-2]))
        return np.concatenate([before, steps]), np.concatenate([first, rates])

    def _scheduled(self, followed: Recognised) -> tuple[Array, Array]:
        """By the schedule where it was recognised in the entries; else by those, as far as they go."""
        steps, rates = _arrays(self._logged)
        end = followed.schedule.total_steps
        kink = followed.schedule.warmup_steps + followed.shift
        if not len(steps) or (steps[0] >= kink and self.schedule is None):
            begin, known = 0, 0
        elif self.schedule is None:
            begin, known = kink, int(np.searchsorted(steps, kink))
        else:
            begin, known = int(steps[-1]) + 1, len(steps)
        ahead = _steps_from(begin, end)
        scheduled = followed.rates(np.maximum(ahead - followed.shift, 0) + followed.shift)
        before, first = (
            _led_back(steps[:known], rates[:known], followed.peak) if known else (np.zeros(0), np.zeros(0))
        )
        late = steps > end if end is not None else np.zeros(len(steps), bool)
        late[:known] = False
        return (
            np.concatenate([before, steps[:known], ahead, steps[late]]),
            np.concatenate([first, rates[:known], scheduled, rates[late]]),
        )

    # the clock

    def times(self, steps: Sequence[int]) -> Timeline:
        """Those of observed checkpoints.

        Raises:
            ClockError: one lies beyond what is known; or two have one time, as nothing was trained between.
        """
        times = [self._time_of(step, observed=True) for step in steps]
        for i in range(1, len(times)):
            if times[i] <= times[i - 1]:
                raise ClockError(
                    f"step {steps[i - 1]} and step {steps[i]} have the same time: the learning rate "
                    "is 0 between them, so nothing was trained; leave one of them out, or set "
                    "`clock: steps`",
                    step=steps[i],
                )
        return Timeline(times, steps)

    def time_of(self, step: float) -> float:
        """That of any step, also of one to come.

        Raises:
            ClockError: the rate that will be is not known, or is 0 from a step on; and what to state.
        """
        return self._time_of(step)

    def _time_of(self, step: float, *, observed: bool = False) -> float:
        logged = self._logged.steps[-1] if self._logged.steps else 0
        if step > logged and not observed:
            _ = self.followed  # raises where it is not known
        if step <= 0:
            return 0.0
        if self._is_step(step):
            return float(step)
        steps, shares, times = self._nodes()
        if not len(steps) or step > steps[-1]:
            if step > logged:
                self._refuse_beyond(step, logged, observed)
            return _rounded(float(times[-1] + shares[-1] * (step - steps[-1])))
        at = max(0, int(np.searchsorted(steps, step)) - 1)
        width, done = steps[at + 1] - steps[at], step - steps[at]
        slope = (shares[at + 1] - shares[at]) / width
        return _rounded(float(times[at] + done * (shares[at] + slope * done / 2)))

    def _is_step(self, step: float) -> bool:
        """Whether the step is the time there: the rate has been the same, and will be up to it."""
        if (self._logged.steps or not self.schedule) and (self._logged.changes or not self._logged.steps):
            return False
        if self._logged.steps and step <= self._logged.steps[-1] and self.schedule is None:
            return True
        return (followed := self._future()) is None or followed.schedule.name == "constant"

    def _refuse_beyond(self, step: float, logged: int, observed: bool) -> None:
        followed = self.followed
        end = followed.schedule.total_steps
        if end is None or followed.schedule.rates(float(end)) > _NOTHING:
            return
        why = (
            f"the learning rate is 0 from step {end} on, so nothing is trained after it (clock: "
            f"{self.in_words()})"
        )
        if observed:
            raise ClockError(
                f"{why}, but there is a checkpoint at step {step:g}; correct the clock, or leave "
                f"out the checkpoints after step {end} (trajectory.steps.max)"
            )
        nearer = f"step {end} at most, or for " if logged < end else ""
        raise ClockError(
            f"{why}; ask for {nearer}`target: {{full_rate_steps: N}}`, as if the rate had stayed at its peak"
        )

    def step_at(self, time: float) -> float | None:
        """The first step at which it is that time; None where it never is, or is not known."""
        if time <= 0:
            return 0.0
        try:
            if self._is_step(time) and self.time_of(time) == time:
                return float(time)
        except ClockError:
            return None
        steps, shares, times = self._nodes()
        if not len(steps):
            return None
        at = int(np.searchsorted(times, time - _GRID / 2))
        if at == len(steps):
            share = float(shares[-1])
            if self._future() is None or share <= _NOTHING:
                return None
            return float(steps[-1] + (time - times[-1]) / share)
        if at == 0:
            return float(steps[0])
        width, left = steps[at] - steps[at - 1], max(0.0, time - float(times[at - 1]))
        slope = float((shares[at] - shares[at - 1]) / width)
        root = math.sqrt(max(0.0, float(shares[at - 1]) ** 2 + 2 * slope * left))
        found = float(steps[at - 1]) + min(
            float(width), 2 * left / (float(shares[at - 1]) + root or math.inf)
        )
        whole = float(round(found))
        return whole if abs(whole - found) < 0.5 and self.time_of(whole) == time else found

    def known_at(self, step: int) -> RateClock:
        """The clock as it was known at an earlier step; what a user states was known then too."""
        if not self._logged.steps or self._logged.stated or step >= self._logged.steps[-1]:
            return self
        if step not in self._known:
            clock = RateClock(self._logged.up_to(step))
            clock.schedule = (
                self.schedule
            )  # it fitted all of the history: a few rates need not be asked again
            self._known[step] = clock
        return self._known[step]

    def in_words(self) -> str:
        """``learning rate (trainer_state.json up to step 200; cosine to step 400, misfit 1e-05)``."""
        parts = []
        if self.history is not None:
            until = f"up to step {self.history.steps[-1]}" if self.history.steps else "without rates yet"
            parts.append(f"{self.history.source} {until}")
        if (followed := self._future()) is None:
            parts.append("the rates to come are not known")
        else:
            end = followed.schedule.total_steps
            stated = ", as stated" if self.schedule is not None else ""
            misfit = f", misfit {_share(followed.misfit)}" if self.history is not None else ""
            parts.append(followed.schedule.name + (f" to step {end}" if end else "") + stated + misfit)
        return f"learning rate ({'; '.join(parts)})"

    def as_json(self) -> dict[str, Any]:
        """What a provenance says of it."""
        followed, history = self._future(), self.history
        shown: dict[str, Any] = {"name": self.name}
        if history is not None:
            shown |= {
                "source": history.source,
                "up_to_step": history.steps[-1] if history.steps else None,
                "max_steps": history.max_steps,
                "peak_rate": max(history.rates, default=None),
            }
        if followed is None:
            return shown | {"schedule": None}
        if history is not None and history.steps:
            shown |= {"misfit": followed.misfit, "peak_rate": max(followed.peak, *history.rates)}
        return shown | {"schedule": followed.schedule.as_json(), "stated": self.schedule is not None}


def _share(misfit: float) -> str:
    """Rounding of the rates themselves is no misfit."""
    return "0" if misfit < 1e-9 else f"{misfit:.0e}"


def _rounded(time: float) -> float:
    return round(time / _GRID) * _GRID


def _arrays(history: RateHistory) -> tuple[Array, Array]:
    return np.array(history.steps, np.float64), np.array(history.rates, np.float64)


def _steps_from(begin: int, end: int | None) -> Array:
    """Steps from one on: up to the end, or ever further apart."""
    if end is None:
        return np.asarray(begin - 1 + np.unique(np.round(np.geomspace(1, _FAR, _NODES))))
    if end < begin:
        return np.zeros(0)
    return np.unique(np.round(np.linspace(begin, end, min(end - begin + 1, _NODES))))


def _led_back(steps: Array, rates: Array, peak: float) -> tuple[Array, Array]:
    """What was before the first entry: a warm-up leads back to it; else the rate was as it is there."""
    if steps[0] == 0:
        return np.zeros(0), np.zeros(0)
    if rates[0] >= peak * (1 - 1e-12):
        return np.zeros(1), rates[:1]
    slope = float((rates[1] - rates[0]) / (steps[1] - steps[0])) if len(steps) > 1 else 0.0
    if slope <= 0 or rates[1] >= peak * (1 - 1e-12):  # the second may lie behind the warm-up's end
        return np.zeros(1), np.zeros(1)
    zero = float(steps[0] - rates[0] / slope)
    if zero > 0:
        return np.array([0.0, zero]), np.zeros(2)
    return np.zeros(1), np.array([rates[0] - slope * steps[0]])
