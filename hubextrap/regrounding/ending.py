"""What comes at the end of a window: a jump or none, and whether the run goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.errors import MethodError
from hubextrap.regrounding.guard import Judgement, judge_jump
from hubextrap.regrounding.jumps import jump_coefficients

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hubextrap.recipe.regrounding import RegroundSection
    from hubextrap.regrounding.history import Decision
    from hubextrap.regrounding.jumps import Clocks, Window


def plan_jump(
    windows: Sequence[Window],
    n: int,
    rule: str,
    gram: NDArray[np.float64],
    tensors: Sequence[str],
    *,
    max_error: float | None,
    probed: bool,
    dtypes: Iterable[str],
) -> tuple[Judgement, dict[str, tuple[float, ...]] | None]:
    """`judge_jump`, and the coefficients by tensor, ``*`` for all; None where the rule cannot serve."""
    judged = judge_jump(windows, n, rule, gram, max_error=max_error, probed=probed, dtypes=dtypes)
    try:
        rows = jump_coefficients(windows, n, rule, gram)
    except MethodError as error:  # e.g. too few windows yet
        return replace(judged, jump=False, reason=f"{rule}: {error}"), None
    names = tensors if len(rows) > 1 else ("*",)
    return judged, {name: tuple(row) for name, row in zip(names, rows.tolist(), strict=True)}


def why_ended(section: RegroundSection, decisions: Sequence[Decision], clocks: Clocks) -> str | None:
    """Why no further round is to begin. A jump is followed by training, whatever the clocks say."""
    if decisions and decisions[-1].action == "jumped":
        return None
    return limit_reached(section, len(decisions), clocks) or _stalled(section, decisions)


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


def _stalled(section: RegroundSection, decisions: Sequence[Decision]) -> str | None:
    most = section.max_skipped
    last = decisions[-most:] if most is not None else ()
    if most is None or len(last) < most or any(decision.action == "jumped" for decision in last):
        return None
    return f"the last {most} jumps were skipped or taken back; max_skipped is {most}"
