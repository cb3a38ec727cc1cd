"""What a jump is: from the snapshots at hand, m steps of training and n to skip, to coefficients.

Training is cut into windows. A window begins at a snapshot and ends, m optimizer steps later, at another;
then the weights may jump, and the next window begins where the jump landed. The snapshots carry represented
steps: the steps taken plus those that jumps stood for.

    window 1: 0 → 20, jump of 60, window 2: 80 → 100, jump of 60, window 3: 160 → 180

Every rule is fitted to what training did, with the jumps cut out and the windows joined end to end: a jump
repeats what was observed before it, so a line through it would count an old window n/m + 1 times, and a
backtest on it would find itself right. On that joined path the rules are the methods of `hubextrap.methods`;
its coefficients are then written as coefficients of the snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from hubextrap.errors import MethodError, StepError
from hubextrap.methods import Rule, sum_to_one

if TYPE_CHECKING:
    from numpy.typing import NDArray

JumpRule = Literal["two_point", "anchored", "calibrated"]
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

    @property
    def steps(self) -> int:
        return self.end - self.start


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
    windows: Sequence[Window], n: int, rule: str, gram: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Coefficients c of the K snapshots (in the order of `snapshot_steps`): the jump lands on Σ c_k·W_k.

    Args:
        windows: the windows at hand in order; the jump starts at the end of the last.
        n: steps to jump over; 0 stays.
        rule: one of `RULES`.
        gram: (N, K, K) for ``calibrated``: inner products of each tensor's deltas.

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
    path, steps = joined_path(windows), joined_steps(windows)
    matrices: Sequence[NDArray[np.float64] | None] = [None]
    if method.needs_gram_matrix:
        if gram is None:
            raise MethodError(f"{rule} needs the Gram matrix of every tensor's snapshots, and none was given")
        matrices = list(joined_gram(windows, gram))
    rows = [method.coefficients(steps, [steps[-1] + n], matrix)[0] @ path for matrix in matrices]
    return np.stack([sum_to_one(row) for row in rows])
