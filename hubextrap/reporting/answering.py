"""The backtest's verdict in sentences, for the top of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import STEPS
from hubextrap.hub.provenance import without_private_parts
from hubextrap.statistics import HORIZONS, horizon_means, judge
from hubextrap.statistics.verdict import PROMISING, say_unforeseen, step_in_words
from hubextrap.trajectory import say_same_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.statistics import Backtest, BacktestRow, BacktestVerdict

FEW_TRIALS = 6
"""Fewer rehearsals than this are no ground for trust."""
CLOSE = 0.1
"""How far the mean expected error may be from the mean found to be believed."""
_LAST_WORD = "All this is about weights. Before a prediction is used, evaluate it beside the last checkpoint."


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether to extrapolate, by what, and how far."""

    level: str
    """``good``, ``care``, ``bad``, or ``unknown`` where nothing could be rehearsed."""
    headline: str
    sentences: tuple[str, ...]


def answer(backtest: Backtest) -> Answer:
    """Put the verdict of ``statistics.judge`` into words, behind a warning of steps that do not differ."""
    same = [f"Beware: {note}." for note in say_same_weights(backtest.same_weights, len(backtest.steps))]
    if backtest.clock.name != STEPS.name:  # a page is passed on, so it says nothing of this machine's folders
        said = without_private_parts(backtest.clock.in_words())
        same.append(f"Horizons are counted by the {said}, in full-rate steps.")
        same += [f"{line[0].upper()}{line[1:]}." for line in say_unforeseen(backtest.unforeseen)]
    ranked = horizon_means(backtest)
    if not ranked or ranked[0].worst is None:
        needs = (
            f"A rehearsal needs several checkpoints that differ, and this scan has {len(backtest.steps)}. "
        )
        nothing = "Do not trust an extrapolation from it without an evaluation."
        nothing = nothing if backtest.unforeseen else needs + nothing
        return Answer("unknown", "Nothing could be rehearsed", (*same, nothing))
    verdict = judge(backtest)
    rounding = (_rounding(backtest, verdict.method),) * backtest.rounded
    if verdict.method is None:
        none_closer = (
            "In rehearsals on this run's own past, no method came closer to the real weights than the last "
            "checkpoint was."
        )
        return Answer("bad", "Keep the last checkpoint", (*same, none_closer, *rounding, _LAST_WORD))
    rows = _near_rows(backtest, verdict.method)
    mean, worst = float(np.mean([row.error for row in rows])), max(row.error for row in rows)
    found = (
        f"In {_times(len(rows), 'rehearsal')} up to a horizon of 1 (from here, "
        f"{step_in_words(backtest, HORIZONS[-1])}), its predictions were on average {mean:.2f} times as far "
        f"from the real weights as the last known checkpoint was, and {worst:.2f} times at worst."
    )
    sentences = [*same, found, *rounding, _reach(verdict), *_expectation(rows)]
    if verdict.base_step is not None:
        sentences.append(
            f"If you want a line through two checkpoints, let it begin at step {verdict.base_step}."
        )
    few = verdict.trials < FEW_TRIALS
    sound = verdict.reach is not None and not verdict.failures and not few and mean <= PROMISING
    return Answer(
        "good" if sound else "care",
        f"{'Extrapolation looks promising: use' if sound else 'Extrapolate with care:'} {verdict.method}",
        (*sentences, _LAST_WORD),
    )


def _near_rows(backtest: Backtest, method: str) -> list[BacktestRow]:
    """Up to a horizon of 1, which is as far as trust goes."""
    return [row for row in backtest.shared_rows()[method] if row.horizon <= HORIZONS[-1]]


def _rounding(backtest: Backtest, method: str | None) -> str:
    total = ""
    if method is not None:
        errors = [row.relative_error for row in _near_rows(backtest, method)]
        total = f" The total error of {method}, with the rounding in it, is {np.mean(errors):.2f}."
    return (
        "The checkpoints are stored in 16 bits, and rounding to them makes up "
        f"{backtest.rounding_share:.0%} of what differs between neighbouring ones. No method can predict "
        "that, and scores hardly notice it. So the errors on this page are those of the signal: the motion "
        f"along its two leading directions in each tensor.{total}"
    )


def _reach(verdict: BacktestVerdict) -> str:
    if verdict.reach is None:
        return "Trust it little: already at the shortest horizon its errors are large."
    return (
        f"Trust it up to {verdict.reach_in_words}: as far ahead, {verdict.failures or 'none'} of "
        f"{_times(verdict.trials, 'rehearsal')} did worse than the last checkpoint."
        + (" That is few to judge by." if verdict.trials < FEW_TRIALS else "")
        + " Beyond, only an evaluation can tell."
    )


def _expectation(rows: Sequence[BacktestRow]) -> Iterator[str]:
    """A sentence, where errors were expected at all."""
    known = [(row.expected_error, row.error) for row in rows if row.expected_error is not None]
    if not known:
        return
    expected, found = (float(np.mean(values)) for values in zip(*known, strict=True))
    if abs(expected - found) <= CLOSE:
        meaning = "so the expected error that comes with a prediction can be believed"
    else:
        meaning = f"so expected errors have been too {'high' if expected > found else 'low'} on this run"
    yield f"Beforehand, {expected:.2f} was expected on average and {found:.2f} was found, {meaning}."


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
