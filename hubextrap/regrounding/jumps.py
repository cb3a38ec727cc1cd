"""What a jump is: from the snapshots at hand, m steps of training and n to skip, to coefficients.

Training is cut into windows. A window begins at a snapshot and ends, m optimizer steps later, at another;
then the weights may jump, and the next window begins where the jump landed. The snapshots carry represented
steps: the steps taken plus those that jumps stood for.

    window 1: 0 → 20, jump of 60, window 2: 80 → 100, jump of 60, window 3: 160 → 180

Every rule is fitted to what training did, with the jumps cut out and the windows joined end to end: a jump
repeats what was observed before it, so a line through it would count an old window n/m + 1 times, and a
backtest on it would find itself right. On that joined path the rules are the methods of `hubextrap.methods`;
its coefficients are then written as coefficients of the snapshots.

Where the learning rate changes, it is the clock: a window is as long as its rates add up to, and a jump of n
steps stands for n steps at the rate of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from hubextrap.clocks import STEPS, Timeline
from hubextrap.errors import MethodError, StepError
from hubextrap.methods import Rule, sum_to_one
from hubextrap.regrounding.rates import Rates, differ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.clocks import Clock

JumpRule = Literal["two_point", "anchored", "calibrated"]
WindowClock = Literal["auto", "steps", "learning_rate"]
Natural = Annotated[int, Field(ge=0)]

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        # least squares through the last of two points is the line through both
        "two_point": Rule(("*",), "least_squares", {"window": 2, "through_last": True}),
        "anchored": Rule(("*",), "least_squares", {"through_last": True}),
        "calibrated": Rule(("*",), "calibrated"),
    }
)
"""`two_point`: the last window's own line, W_end + n/m·(W_end − W_start) (arXiv 2601.04537).
`anchored`: the least-squares line through the last snapshot over all windows at hand.
`calibrated`: `hubextrap.methods.calibrated`, for each tensor by itself, over all windows at hand, two at
least."""
WINDOWS_KEPT: Mapping[str, int] = MappingProxyType({"two_point": 2, "anchored": 4, "calibrated": 6})
"""How many windows each rule is given: for two_point one to jump along and one to backtest it on."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where a run stands."""

    rl_steps: Natural = 0
    """Optimizer steps taken."""
    extrapolated_steps: Natural = 0
    """Steps that jumps stood for."""

    @property
    def represented_steps(self) -> int:
        return self.rl_steps + self.extrapolated_steps

    def trained(self, steps: int) -> Clocks:
        return Clocks(self.rl_steps + steps, self.extrapolated_steps)

    def jumped(self, n: int) -> Clocks:
        return Clocks(self.rl_steps, self.extrapolated_steps + n)


@dataclass(frozen=True, slots=True)
class Window:
    """Training between two snapshots, named by their represented steps."""

    start: int
    end: int
    rates: Rates | None = None
    """Of the updates in it; None where they are not known."""

    @property
    def steps(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class JoinedClock:
    """What time it is on the joined path: full-rate steps since the first window began."""

    timeline: Timeline
    name = "learning_rate"

    def times(self, steps: Sequence[int]) -> tuple[float, ...]:
        return Timeline(map(self.time_of, steps), steps)

    def time_of(self, step: float) -> float:
        return self.timeline[self.timeline.steps.index(int(step))]

    def step_at(self, time: float) -> float | None:
        return None

    def known_at(self, step: int) -> Clock:
        return self  # a jump is as long as it is said to be, and foresees no rate

    def in_words(self) -> str:
        return "learning rate"

    def as_json(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Timing:
    """The windows, and a jump from the end of the last, on a clock."""

    windows: tuple[Window, ...]
    """Those that count on it, the last among them."""
    clock: Clock
    ahead: float
    """How far the jump goes on it."""
    refusal: str | None = None
    """Why no jump can be made, whatever the weights say."""

    @property
    def times(self) -> tuple[float, ...]:
        """Of the points of the joined path."""
        return self.clock.times(joined_steps(self.windows))


def timing_of(
    windows: Sequence[Window], n: int, clock: WindowClock, rate: float | None, peak: float = 0.0
) -> Timing:
    """Which clock the windows go by, and how far n steps are on it.

    Args:
        clock: ``auto`` takes the learning rate where it really changed within the windows, or since.
        rate: that of the next update; None where it is not known.
        peak: the largest that the run had before; full-rate steps are those at the largest of all.

    Raises:
        MethodError: the learning rate is to be the clock, and is not known.
    """
    every, by_steps = tuple(windows), Timing(tuple(windows), STEPS, n)
    known = [window.rates for window in windows if window.rates is not None]
    if clock == "steps":
        return by_steps
    if rate is None or len(known) < len(every):
        if clock == "auto":
            return by_steps
        raise MethodError(
            "clock 'learning_rate': the rates of the windows at hand are not known; choose auto or steps"
        )
    largest = max(rate, *(rates.largest for rates in known))
    if clock == "auto" and not differ(min(rate, *(rates.least for rates in known)), largest):
        return by_steps
    if known[-1].total == 0.0:
        return replace(by_steps, refusal="the learning rate was 0 throughout the window: nothing was trained")
    peak = max(peak, largest)
    counted = tuple(window for window in every if window.rates and window.rates.total > 0.0)
    lengths = (window.rates.full_rate_steps(peak) for window in counted if window.rates)
    timeline = Timeline(accumulate(lengths, initial=0.0), joined_steps(counted))
    refusal = None if rate > 0.0 else f"the learning rate is 0 now, so a jump of {n} steps would move nothing"
    return Timing(counted, JoinedClock(timeline), n * (rate / peak), refusal)


def check_rule(rule: str) -> Rule:
    """The method behind a rule's name.

    Raises:
        MethodError: there is no such rule.
    """
    if rule not in RULES:
        raise MethodError(f"rule {rule!r}: choose one of {', '.join(RULES)}")
    return RULES[rule]


def snapshot_steps(windows: Sequence[Window]) -> tuple[int, ...]:
    """The K represented steps of the windows' snapshots, increasing; an end that is also a start comes once.

    Raises:
        StepError: no windows, one without steps, or one that begins before the last has ended.
    """
    if not windows:
        raise StepError("no windows: a jump needs one with a snapshot at its start and one at its end")
    for window in windows:
        if window.steps < 1:
            raise StepError(f"a window from step {window.start} to {window.end} holds no training")
    for before, after in pairwise(windows):
        if after.start < before.end:
            raise StepError(
                f"the window from step {after.start} begins before the one to step {before.end} ends"
            )
    return tuple(dict.fromkeys(step for window in windows for step in (window.start, window.end)))


def joined_steps(windows: Sequence[Window]) -> tuple[int, ...]:
    """The w + 1 steps of the joined path: optimizer steps since the first window began."""
    return tuple(accumulate((window.steps for window in windows), initial=0))


def joined_path(windows: Sequence[Window]) -> NDArray[np.float64]:
    """(w + 1, K): the points of the joined path as combinations of the snapshots; rows sum to 1.

    The last point is the last snapshot; going back from it, each window's motion is taken off.
    """
    position = {step: index for index, step in enumerate(snapshot_steps(windows))}
    path = np.zeros((len(windows) + 1, len(position)))
    path[-1, position[windows[-1].end]] = 1.0
    for index in range(len(windows) - 1, -1, -1):
        path[index] = path[index + 1]
        path[index, position[windows[index].end]] -= 1.0
        path[index, position[windows[index].start]] += 1.0
    return path


def joined_gram(windows: Sequence[Window], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, w + 1, w + 1): Gram matrices of the joined path's deltas to its first point.

    Args:
        gram: (N, K, K), inner products of the snapshots' deltas, to whatever common base.
    """
    path = joined_path(windows)
    deltas = path - path[0]
    return np.asarray(deltas @ gram @ deltas.T)


def jump_coefficients(
    windows: Sequence[Window],
    n: int,
    rule: str,
    gram: NDArray[np.float64] | None = None,
    timing: Timing | None = None,
) -> NDArray[np.float64]:
    """Coefficients c of the K snapshots (in the order of `snapshot_steps`): the jump lands on Σ c_k·W_k.

    Args:
        windows: the windows at hand in order; the jump starts at the end of the last.
        n: steps to jump over; 0 stays.
        rule: one of `RULES`.
        gram: (N, K, K) for ``calibrated``: inner products of each tensor's deltas.
        timing: of these windows and n, where steps are not the clock.

    Returns:
        float64 (N, K) for ``calibrated``, else (1, K) for every tensor; rows sum to 1.

    Raises:
        StepError: the windows are not in order.
        MethodError: no such rule, a negative n, no Gram matrix where one is needed, or windows that the rule
            cannot serve with (too few for ``calibrated``, or no horizon like this one among them).
    """
    method = check_rule(rule)
    if n < 0:
        raise MethodError(f"n {n}: a jump goes forward; give 0 or more steps")
    timing = timing or Timing(tuple(windows), STEPS, n)
    path, times = joined_path(windows), timing.times
    matrices: Sequence[NDArray[np.float64] | None] = [None]
    if method.needs_gram_matrix:
        if gram is None:
            raise MethodError(f"{rule} needs the Gram matrix of every tensor's snapshots, and none was given")
        matrices = list(joined_gram(windows, gram))
    rows = [method.coefficients(times, [times[-1] + timing.ahead], matrix)[0] @ path for matrix in matrices]
    return np.stack([sum_to_one(row) for row in rows])
