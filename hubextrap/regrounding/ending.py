"""What comes at the end of a window: a jump or none, and whether the run goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubextrap.errors import MethodError
from hubextrap.regrounding.guard import judge_jump
from hubextrap.regrounding.history import Decision, finite_or_none
from hubextrap.regrounding.jumps import jump_coefficients, snapshot_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.recipe.regrounding import RegroundSection
    from hubextrap.regrounding.guard import ProbeVerdict, Values
    from hubextrap.regrounding.jumps import Clocks, Timing
    from hubextrap.regrounding.rates import Rates


@dataclass(frozen=True, slots=True)
class GramOfSnapshots:
    """The inner products of the K snapshots of the windows."""

    tensors: Sequence[str]
    gram: NDArray[np.float64]
    """(N, K, K): of each tensor's deltas."""
    dtypes: Collection[str]
    """safetensors names."""


def decide(
    clocks: Clocks,
    timing: Timing,
    n: int,
    rule: str,
    found: GramOfSnapshots,
    *,
    max_error: float | None,
    probed: bool,
    last: bool,
) -> Decision:
    """Jump n steps or not; what judges the jump itself comes after it, in `after_jump`.

    Args:
        clocks: at the end of the last window.
        timing: of the windows and n.
        probed: something judges the jump.
        last: training ends here.
    """
    windows = timing.windows
    judged = judge_jump(
        windows, n, rule, found.gram, max_error=max_error, probed=probed, dtypes=found.dtypes, timing=timing
    )
    jump, reason, coefficients = judged.jump, judged.reason, None
    try:
        rows = None if timing.refusal else jump_coefficients(windows, n, rule, found.gram, timing)
    except MethodError as error:  # e.g. too few windows yet
        jump, reason = False, f"{rule}: {error}"
    else:
        if rows is not None:
            names = found.tensors if len(rows) > 1 else ("*",)
            coefficients = {name: tuple(row) for name, row in zip(names, rows.tolist(), strict=True)}
    by_rate = timing.clock.name == "learning_rate"
    if by_rate and timing.refusal is None:
        reason += f"; {n} steps at the current learning rate are {timing.ahead:.4g} full-rate steps"
    if last:
        jump, reason = False, f"training ends here, and what it ends with was trained ({reason})"
    used = n if jump else 0
    return Decision(
        rl_steps=clocks.rl_steps,
        represented_steps=clocks.represented_steps + used,
        rule=rule,
        n_wanted=n,
        n_used=used,
        action="jumped" if jump else "skipped",
        reason=reason,
        snapshot_steps=snapshot_steps(windows),
        coefficients=coefficients,
        backtest_error=finite_or_none(judged.backtest_error),
        expected_relative_error=finite_or_none(judged.expected_relative_error),
        clock="learning_rate" if by_rate else "steps",
    )


def after_jump(decision: Decision, verdict: ProbeVerdict, before: Values, after: Values) -> Decision:
    """The decision to jump, kept or taken back."""
    decision = replace(
        decision,
        reason=f"{decision.reason}; {verdict.reason}",
        probe_before=before.probe,
        probe_after=finite_or_none(after.probe),
        own_answers_before=before.own_answers,
        own_answers_after=finite_or_none(after.own_answers),
    )
    if verdict.keep:
        return decision
    trained = decision.represented_steps - decision.n_used
    return replace(decision, action="rolled_back", n_used=0, represented_steps=trained)


def along(passed: Rates | None, rate: float | None, decision: Decision) -> Rates | None:
    """What the run has passed, its jumps taken at the rate of the moment, and now this one."""
    if passed is None or (decision.n_used and rate is None):
        return None
    return passed.plus(rate, decision.n_used) if decision.n_used and rate is not None else passed


def timed(decision: Decision, passed: Rates | None) -> Decision:
    """The decision with the full-rate steps that the weights stand for after it."""
    return decision if passed is None else replace(decision, full_rate_steps=passed.in_full_rate_steps)


def why_ended(section: RegroundSection, decisions: Sequence[Decision], clocks: Clocks) -> str | None:
    """Why no further round is to begin. A jump is followed by training, whatever the clocks say."""
    if decisions and decisions[-1].action == "jumped":
        return None
    if limit := limit_reached(section, len(decisions), clocks):
        return limit
    most = section.max_skipped
    if most is None or len(decisions) < most or any(one.action == "jumped" for one in decisions[-most:]):
        return None
    return f"the last {most} jumps were skipped or undone; max_skipped is {most}"


def limit_reached(section: RegroundSection, rounds: int, clocks: Clocks) -> str | None:
    """Which limit a run that has trained so far has come to."""
    if section.iterations is not None and rounds >= section.iterations:
        return f"{rounds} iterations are done"
    most = section.max_rl_steps
    if most is not None and clocks.rl_steps + section.window > most:
        return f"{clocks.rl_steps} RL steps; another round would exceed max_rl_steps {most}"
    most = section.max_represented_steps
    if most is not None and clocks.represented_steps >= most:
        return f"{clocks.represented_steps} steps are represented; max_represented_steps is {most}"
    return None
