"""Whether to jump: what the last windows say of the rule, and what a probe says of a jump already made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import STEPS, Timeline
from hubextrap.errors import MethodError
from hubextrap.methods import longest_horizon
from hubextrap.regrounding.jumps import Timing, Window, check_rule, joined_gram, joined_steps, snapshot_steps
from hubextrap.statistics import BacktestCandidate, GramTable, backtest_table, expect_of_last, is_rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ERROR = 1.0
"""Default threshold: an error of 1 is what standing still would have had, so above it a jump moves away from
where training is heading. Measured on `two_point`: .20 to .32 for windows of 20 steps of a GRPO run, .56
to .74 for windows of 40 of another, 1.00 for its first two; and for a run that jumped 60 steps after every 20
(from step 0, two seeds) 1.06 and 1.14 at step 60, .35 to .82 at all other ends of windows."""

STILL = 1e-13
"""Share of two snapshots' squared distances to a third up to which their own is rounding: sums of the same
products in another order differ by some 1e-15 of them."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the windows say of a jump of n steps. Errors are relative: 1 is standing still."""

    jump: bool
    reason: str
    backtest_error: float | None
    """Of having predicted the last window by the rule at its start; None with too few windows."""
    expected_relative_error: float | None
    """Of the jump itself, by the windows' own rehearsals at horizons like it; None without any."""


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What a probe says of a jump that was made; or what the model's own answers do."""

    keep: bool
    n: int
    """How far to jump the next time."""
    reason: str


@dataclass(frozen=True, slots=True)
class Values:
    """What was found of the weights before a jump, or after it; None of what was not asked for."""

    probe: float | None = None
    own_answers: float | None = None
    """Mean log-probability of the answers that were drawn before the jump."""


def judge_jump(
    windows: Sequence[Window],
    n: int,
    rule: str,
    gram: NDArray[np.float64],
    *,
    max_error: float | None = MAX_ERROR,
    probed: bool = False,
    dtypes: Iterable[str] = (),
    timing: Timing | None = None,
) -> Judgement:
    """Backtest ``rule`` on the windows at hand, and decide on a jump of n steps from the end of the last.

    The joined path of the windows holds nothing but training, so no jump is its own witness. A jump is
    refused when the last window moved nothing, when either error is above ``max_error``, when it goes farther
    than anything the windows have rehearsed, and when there is one window (unless a probe will judge it).

    Args:
        gram: (N, K, K) inner products of each tensor's deltas over the K `snapshot_steps`.
        max_error: None refuses nothing but a window without motion; the errors are still computed, for the
            log.
        probed: whether a probe, or the model's own answers, will judge the jump after it was made.
        dtypes: of the snapshots, as safetensors names them: with 16 bits, rounding is told from training.
        timing: of these windows and n, where steps are not the clock.

    Raises:
        StepError, MethodError: as `jump_coefficients` does for the windows and the rule's name.
    """
    timing = timing or Timing(tuple(windows), STEPS, n)
    steps = joined_steps(windows)
    check_rule(rule)
    if timing.refusal is not None:
        return Judgement(False, timing.refusal, None, None)
    if not _moved(windows[-1], snapshot_steps(windows), gram):
        reason = "the last window moved no weight, so there is no line to jump along"
        return Judgement(False, reason, None, None)
    joined = joined_gram(windows, gram)
    names = tuple(f"{index}" for index in range(len(joined)))
    table = GramTable(steps, names, np.zeros(len(joined), dtype=np.int64), joined, timing.clock)
    times, ahead = table.times, timing.ahead
    backtest = _backtest_error(table, rule, dtypes)
    expected = _expected_error(table, ahead, rule, dtypes)
    horizon, longest = ahead / times[-1], longest_horizon(times)
    if expected is None and horizon <= longest:  # shorter than all that was rehearsed
        expected = backtest
    if max_error is None:
        return Judgement(True, "the guard is off", backtest, expected)
    if len(windows) < 2:
        if probed:
            return Judgement(
                True,
                "the first window: only the probe or the own answers judge it, after the jump",
                None,
                None,
            )
        return Judgement(False, "the first window: there is no earlier one to backtest on", None, None)
    if expected is None:
        reason = (
            f"n = {n} is {horizon:.3g} times the {_length(times)} of training at hand, and they "
            f"have rehearsed no horizon that long (at most {longest:.3g}); choose a smaller n or a "
            "larger m"
        )
        return Judgement(False, reason, backtest, None)
    worst = max(expected, backtest or 0.0)
    said = f"expected error {expected:.3g}" + ("" if backtest is None else f", backtest {backtest:.3g}")
    if worst > max_error:
        return Judgement(False, f"{said}: above {max_error:g} (1 is standing still)", backtest, expected)
    return Judgement(True, f"{said}: not above {max_error:g}", backtest, expected)


def _moved(window: Window, steps: Sequence[int], gram: NDArray[np.float64]) -> bool:
    """Whether a window has another end than start, by the Gram matrices of all `snapshot_steps`."""
    first, last = steps.index(window.start), steps.index(window.end)
    size = gram[:, first, first] + gram[:, last, last]
    return bool((size - 2 * gram[:, first, last] > STILL * size).any())


def judge_probe(n: int, before: float, after: float, *, margin: float, longest: int) -> ProbeVerdict:
    """Keep or undo a jump of n steps by a probe's values before and after it; higher is better.

    Harm above ``margin`` undoes it and halves n. A gain above it doubles n, up to ``longest``. Between them
    nothing changes.

    Raises:
        MethodError: the value before is not finite. One after it that is not counts as harm.
    """
    if not math.isfinite(before):
        raise MethodError(f"the probe returned {before} before the jump; it must return a finite number")
    said = f"probe {before:.4g} before, {after:.4g} after"
    if not math.isfinite(after) or before - after > margin:
        shorter = max(1, n // 2)
        return ProbeVerdict(False, shorter, f"{said}: harm above the margin {margin:g}; n {n} → {shorter}")
    if after - before > margin and n < longest:
        longer = min(longest, 2 * n)
        return ProbeVerdict(True, longer, f"{said}: a gain above the margin {margin:g}; n {n} → {longer}")
    return ProbeVerdict(True, n, f"{said}: margin {margin:g}")


def judge_own_answers(n: int, before: float, after: float) -> ProbeVerdict:
    """Keep or undo a jump of n steps by how likely the answers are that the weights before it gave.

    Fallen by `FALL` or more undoes it and halves n; nothing makes n grow.

    Args:
        before: mean log-probability in nats per answer, and ``after`` it.

    Raises:
        MethodError: the value before is not finite. One after it that is not counts as fallen.
    """
    from hubextrap.evaluation.own_answers import FALL

    if not math.isfinite(before):
        raise MethodError(
            f"own answers: before the jump their log-probability is {before} nats per answer; it must "
            "be finite"
        )
    said = f"own answers {before:.4g} nats per answer before, {after:.4g} after"
    if not math.isfinite(after) or before - after >= FALL:
        shorter = max(1, n // 2)
        return ProbeVerdict(False, shorter, f"{said}: fallen by {FALL:g} or more; n {n} → {shorter}")
    return ProbeVerdict(True, n, f"{said}: not fallen by {FALL:g}")


def judge_after(
    n: int, before: Values, after: Values, *, margin: float | None, longest: int
) -> ProbeVerdict | None:
    """Keep or undo a jump by all that was asked of the weights; None where nothing was.

    Each can undo it. n grows by the probe's gain alone.

    Raises:
        MethodError: as `judge_probe` and `judge_own_answers` do.
    """
    found = []
    if before.probe is not None and after.probe is not None and margin is not None:
        found.append(judge_probe(n, before.probe, after.probe, margin=margin, longest=longest))
    if before.own_answers is not None and after.own_answers is not None:
        found.append(judge_own_answers(n, before.own_answers, after.own_answers))
    if not found:
        return None
    undoing = [one for one in found if not one.keep]
    return ProbeVerdict(not undoing, (undoing or found)[0].n, "; ".join(one.reason for one in found))


def _backtest_error(table: GramTable, rule: str, dtypes: Iterable[str]) -> float | None:
    rows = backtest_table(table, [BacktestCandidate(rule, (check_rule(rule),))], dtypes=dtypes).rows
    return next((row.error for row in rows if (row.last_step, row.target_step) == table.steps[-2:]), None)


def _expected_error(table: GramTable, ahead: float, rule: str, dtypes: Iterable[str]) -> float | None:
    if not ahead > 0:
        return None
    rounded = is_rounded(table, dtypes)
    return expect_of_last((check_rule(rule),), table, table.times[-1] + ahead, rounded).relative_error


def _length(times: Sequence[float]) -> str:
    full_rate = isinstance(times, Timeline)
    return f"{times[-1]:.4g} full-rate steps" if full_rate else f"{times[-1]} steps"
