"""The words of a verdict: what stands behind its level, sentence by sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.clocks import STEPS
from hubextrap.figures import AS_SAMPLED, percent, with_stderr
from hubextrap.statistics.plain_names import with_article
from hubextrap.statistics.verdict import HORIZONS, TRUSTED, mean_stderr, say_unforeseen, step_in_words
from hubextrap.trajectory import say_same_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.statistics.backtesting import Backtest
    from hubextrap.statistics.findings import JudgedTarget, Level, Rehearsals, RunVerdict, ScoreOutcome

TOO_FEW = 3
"""Fewer rehearsals than this up to a horizon of 1 say nothing, whatever they came to."""
FEW = 6
"""Fewer than this are no ground for trust."""
CLOSE = 0.1
"""How far the mean expected error may be from the mean found to be believed."""


def beforehand(backtest: Backtest) -> Iterator[str]:
    """What has to be known before the figures: same weights, the clock, targets left out."""
    so_far = "" if backtest.sampled is None else AS_SAMPLED
    for note in say_same_weights(backtest.same_weights, len(backtest.steps)):
        yield f"Beware: {so_far}{note}."
    if backtest.clock.name != STEPS.name:
        yield f"Horizons are counted by the {backtest.clock.in_words()}, in full-rate steps."
    for line in say_unforeseen(backtest.unforeseen):
        yield f"{capital(line)}."


def sentences_of(backtest: Backtest, found: RunVerdict, target: JudgedTarget | None) -> Iterator[str]:
    """What stands behind the headline."""
    past = found.rehearsals
    if backtest.rounded:
        yield _rounding(backtest, found.method)
    if past.near < TOO_FEW:
        if past.mean_error is not None:
            yield (
                f"{capital(_came_to(past))}. That is too few to trust or to dismiss any method: "
                "observe more checkpoints."
            )
        return
    if found.method is not None:
        yield f"In {counted(past.near, 'rehearsal')} {within_one(backtest)}, {_came_to(past)}."
    if found.reach is not None:
        few = " That is few to judge by." if past.near < FEW else ""
        yield (
            f"{_capital_count(past.worse)} of them did worse than the last checkpoint.{few} Trust it up to "
            f"{with_horizon(backtest, found.reach)}; beyond, only an evaluation can tell."
        )
    elif found.method is not None and past.mean_error is not None and past.mean_error < 1:
        yield (
            f"Trust it little: its mean error is above {TRUSTED:g} already at the shortest horizon "
            "that was rehearsed."
        )
    yield from _expectation(backtest, found.method)
    if found.base_step is not None and target is None:
        yield f"Best start for a line through two checkpoints (`base_step`): step {found.base_step}."


def _capital_count(count: int) -> str:
    return str(count) if count else "None"


def _came_to(past: Rehearsals) -> str:
    mean = with_stderr(past.mean_error, past.mean_error_stderr)
    if past.near == 1:
        return (
            f"the prediction was {mean} times as far from the real weights as the last known checkpoint was"
        )
    return (
        f"predictions were on average {mean} times as far from the real weights as the last "
        f"known checkpoint was, and {with_stderr(past.worst_error, past.worst_error_stderr)} times at worst"
    )


def _rounding(backtest: Backtest, method: str | None) -> str:
    rows = backtest.shared_rows().get(method or "", [])
    near = [row for row in rows if row.horizon <= HORIZONS[-1]]
    total = ""
    if near:
        mean = float(np.mean([row.relative_error for row in near]))
        said = with_stderr(mean, mean_stderr([row.relative_error_stderr for row in near]))
        total = f" With the rounding in it, the mean error of {with_article(method or '')} is {said}."
    share = percent(backtest.rounding_share, backtest.rounding_share_stderr)
    return (
        "The checkpoints are stored in 16 bits. Rounding makes up "
        f"{share} of what differs between neighbouring ones. No method can predict "
        "that, and scores hardly notice it. So errors are those of the signal: the motion along the two "
        f"leading directions of each tensor.{total}"
    )


def _expectation(backtest: Backtest, method: str | None) -> Iterator[str]:
    """Whether expected errors were right, where errors were expected at all."""
    rows = backtest.shared_rows().get(method or "", [])
    near = [row for row in rows if row.expected_error is not None and row.horizon <= HORIZONS[-1]]
    if not near:
        return
    known = [(row.expected_error, row.error) for row in near if row.expected_error is not None]
    expected, real = (float(np.mean(values)) for values in zip(*known, strict=True))
    forecast = with_stderr(expected, mean_stderr([row.expected_error_stderr for row in near]))
    found = with_stderr(real, mean_stderr([row.error_stderr for row in near]))
    if abs(expected - real) <= CLOSE:
        meaning = "so the expected error that comes with a prediction can be believed"
    else:
        meaning = f"so expected errors have been too {'high' if expected > real else 'low'} on this run"
    yield (
        f"Beforehand, {forecast} was expected on average and {found} was found "
        f"({counted(len(known), 'rehearsal')}), {meaning}."
    )


def say_close(backtest: Backtest, method: str) -> Iterator[str]:
    """That the second method is no worse as far as a sample can tell; nothing where all weights were read."""
    near = {
        name: [row for row in rows if row.horizon <= HORIZONS[-1]]
        for name, rows in backtest.shared_rows().items()
    }
    means = {name: float(np.mean([row.error for row in rows])) for name, rows in near.items() if rows}
    stderrs = {name: mean_stderr([row.error_stderr for row in near[name]]) for name in means}
    others = sorted((mean, name) for name, mean in means.items() if name != method)
    if not others or method not in means:
        return
    second = others[0][1]
    errors = [stderr for stderr in (stderrs[method], stderrs[second]) if stderr is not None]
    # errors of two methods on the same weights rise and fall together: the greater bounds their difference's
    if errors and means[second] - means[method] <= 2 * max(errors):
        yield (
            f"{capital(with_article(second))} came as near within the sample's error: on average "
            f"{with_stderr(means[second], stderrs[second])}."
        )


def by_scores(scores: Sequence[ScoreOutcome], several: bool) -> tuple[Level, str]:
    """Level and headline of one prediction by what it scored, the worst task first."""
    whose = "The prediction"
    if several and scores[0].step is not None:
        whose += f" of step {scores[0].step}"
    of = {
        outcome: [score for score in scores if score.outcome == outcome]
        for outcome in ("worse", "no difference", "not judged", "better", "failed")
    }
    if of["worse"]:
        also = f", and better on {_figures_of(of['better'])}" if of["better"] else ""
        said = f"{whose} scored worse than the last checkpoint: {_figures_of(of['worse'])}"
        return ("care" if of["better"] else "bad"), said + also
    if of["failed"]:
        also = f"; where it did not, better: {_figures_of(of['better'])}" if of["better"] else ""
        return "unknown", f"The evaluation failed: {of['failed'][0].reason}{also}"
    if of["better"]:
        return "good", f"{whose} scored better than the last checkpoint: {_figures_of(of['better'])}"
    if of["no difference"]:
        same = _figures_of(of["no difference"])
        return "care", f"{whose} scored no better than the last checkpoint: {same}"
    return "care", f"{whose} was scored, with nothing to judge it by: {_figures_of(of['not judged'])}"


def _figures_of(scores: Sequence[ScoreOutcome]) -> str:
    shown = [f"{score.task} {_score(score.value)} against {_score(score.last)}" for score in scores[:3]]
    return ", ".join(shown) + (f" and {len(scores) - 3} more" if len(scores) > 3 else "")


def score_sentence(score: ScoreOutcome) -> str:
    of = "" if score.step is None else f" (step {score.step})"
    if score.outcome == "failed":
        return f"{capital(score.label)}{of}: {score.task} was not measured: {score.reason}."
    interval = ""
    if score.interval is not None:
        interval = f" [{score.interval[0]:+.3f}, {score.interval[1]:+.3f}]"
    change = "" if score.change is None else f": {score.change:+.3f}{interval}"
    return (
        f"{capital(score.label)}{of}: {score.task} is {_score(score.value)}, against {_score(score.last)} of "
        f"the last observed checkpoint{change}, {score.outcome}."
    )


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def with_horizon(backtest: Backtest, horizon: float) -> str:
    """A horizon as the step that it is, and as a number."""
    return f"{step_in_words(backtest, horizon)} (horizon {horizon:g})"


def within_one(backtest: Backtest) -> str:
    """As near as judged rehearsals are."""
    return f"within a horizon of 1 (from here, {step_in_words(backtest, 1.0)})"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
