"""The one verdict on a run, or on a prediction of it: what its own past and its scores say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hubextrap.figures import with_stderr
from hubextrap.statistics.findings import JudgedTarget, Level, Rehearsals, RunVerdict, ScoreOutcome, Trust
from hubextrap.statistics.plain_names import with_article
from hubextrap.statistics.verdict import (
    HORIZONS,
    LOST,
    PROMISING,
    TRUSTED,
    by_horizon,
    horizon_means,
    mean_of,
    mean_stderr,
    moved_by,
    step_in_words,
    time_at,
)
from hubextrap.statistics.wording import (
    FEW,
    TOO_FEW,
    beforehand,
    by_scores,
    capital,
    counted,
    say_close,
    score_sentence,
    sentences_of,
    with_horizon,
    within_one,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.statistics.backtesting import Backtest, BacktestRow

_LAST_WORD = "All this is about weights. Evaluate a prediction beside the last checkpoint before you use it."
_HALF_A_STEP = 0.5 + 1e-6
"""A target is a whole step, and the one nearest to the reach lies within it."""


def judge_run(
    backtest: Backtest,
    *,
    target: JudgedTarget | None = None,
    scores: Sequence[ScoreOutcome] = (),
    method: str | None = None,
) -> RunVerdict:
    """The verdict on the best of the methods that were rehearsed.

    Scores outrank everything; then come too few rehearsals, a method of no use, and what is expected of the
    target. A level is ``good`` only where nothing speaks against it.

    Args:
        target: of a prediction; without it, the verdict is on the run.
        method: what to call the only method of the backtest.
    """
    verdict = _judged(backtest, target, method)
    turns = _turns(backtest, target, method, verdict)
    close = () if verdict.method is None else say_close(backtest, verdict.method)
    said = sentences_of(backtest, verdict, target)
    sentences = (*beforehand(backtest), *said, *close, *([turns] if turns else []), _LAST_WORD)
    return with_scores(replace(verdict, sentences=sentences, turns=turns), scores)


def _judged(backtest: Backtest, target: JudgedTarget | None, method: str | None) -> RunVerdict:
    """Level, headline and figures."""
    found = _figures(backtest, method)
    level, headline = _by_the_past(backtest, found, target)
    return replace(found, level=level, headline=headline, target=target)


def _turns(
    backtest: Backtest, target: JudgedTarget | None, method: str | None, verdict: RunVerdict
) -> str | None:
    """What the verdict would be, were all errors two standard errors higher or lower; None if the same.

    The same is the same level, a method recommended or none, and the same reach. That another method comes
    first by less than the error of both is no other verdict: either will do.
    """
    if backtest.sampled is None and (target is None or target.expected_error_stderr is None):
        return None
    said = []
    for sign, word in ((1, "higher"), (-1, "lower")):
        moved = _judged(moved_by(backtest, 2 * sign), _target_moved_by(target, 2 * sign), method)
        kept = [(one.level, one.method is None, one.reach) for one in (verdict, moved)]
        if kept[0] != kept[1]:
            said.append(f"with errors 2 standard errors {word} it would be “{moved.line}”")
    if not said:
        return None
    return (
        f"The sample's standard error could turn this verdict: {', and '.join(said)}. Reading all weights "
        'settles it (`--exact`; in Python, sample="exact").'
    )


def _target_moved_by(target: JudgedTarget | None, stderrs: int) -> JudgedTarget | None:
    if target is None or target.expected_error is None or target.expected_error_stderr is None:
        return target
    moved = target.expected_error + stderrs * target.expected_error_stderr
    return replace(target, expected_error=max(moved, 0.0))


def is_beyond(horizon: float, reach: float, times: Sequence[float]) -> bool:
    """Whether a target lies beyond what is trusted. Args: times: of the checkpoints."""
    return (horizon - reach) * (times[-1] - times[0]) > _HALF_A_STEP


def trust(verdict: RunVerdict, last: int) -> Trust | None:
    """Up to where the past trusts the method judged; None where too few rehearsals say it.

    Args:
        last: the last observed step.
    """
    if verdict.rehearsals.near < TOO_FEW:
        return None
    if verdict.reach is None:
        return Trust(0.0, last, f"step {last}")
    return Trust(verdict.reach, verdict.reach_step, verdict.reach_in_words or "")


def not_judged(headline: str, steps: Sequence[int] = (), target: JudgedTarget | None = None) -> RunVerdict:
    """The verdict where the weights were not compared, or there are too few checkpoints to compare."""
    if 0 < len(steps) < 3:
        headline = f"{counted(len(steps), 'checkpoint')} cannot be judged: a rehearsal needs 3"
    nothing = Rehearsals(0, 0, 0, None, None)
    return RunVerdict(
        "unknown", headline, (_LAST_WORD,), None, None, None, None, None, nothing, target=target
    )


def with_scores(verdict: RunVerdict, scores: Sequence[ScoreOutcome]) -> RunVerdict:
    """The same once predictions were evaluated: what they scored decides."""
    if not scores:
        return verdict
    by_label: dict[tuple[str, int | None], list[ScoreOutcome]] = {}
    for score in scores:
        by_label.setdefault((score.label, score.step), []).append(score)
    levels: dict[Level, list[str]] = {}
    for found in by_label.values():
        level, said = by_scores(found, several=len(by_label) > 1)
        levels.setdefault(level, []).append(said)
    # "better here, worse there" calls for care; a failure hides nothing that was measured
    mixed: Level = "care" if {"good", "care"} & levels.keys() else "bad"
    level = next(iter(levels)) if len(levels) == 1 else mixed
    said = "; ".join(line for order in ("bad", "care", "good", "unknown") for line in levels.get(order, ()))
    by_weights = f"By the weights alone: {verdict.headline[0].lower()}{verdict.headline[1:]}."
    passed = (_LAST_WORD, verdict.turns)  # what was measured, no sample's error can turn
    kept = tuple(sentence for sentence in verdict.sentences if sentence not in passed)
    sentences = (*map(score_sentence, scores), by_weights, *kept)
    return replace(verdict, level=level, headline=said, sentences=sentences, scores=tuple(scores), turns=None)


def _figures(backtest: Backtest, name: str | None) -> RunVerdict:
    """What the near rehearsals of the best method come to; words follow."""
    ranked = horizon_means(backtest)
    method = ranked[0].method if ranked else None
    rows = backtest.shared_rows()[method] if method else []
    near = [row for row in rows if row.horizon <= HORIZONS[-1]]
    errors = [row.error for row in near]
    mean, worst = mean_of(errors), max(near, key=lambda row: row.error, default=None)
    rehearsals = Rehearsals(
        len(rows),
        len(near),
        sum(error > 1 for error in errors),
        mean,
        None if worst is None else worst.error,
        mean_stderr([row.error_stderr for row in near]),
        None if worst is None else worst.error_stderr,
    )
    named = method if name is None else name
    useful = method is not None and len(near) >= TOO_FEW and mean is not None and mean < 1
    reach = _reach(rows) if useful else None
    time = None if reach is None else time_at(backtest, reach)
    step = None if time is None else backtest.clock.step_at(time)
    return RunVerdict(
        "unknown",
        "",
        (),
        named if useful or (name is not None and len(near) >= TOO_FEW) else None,
        backtest.base_step,
        reach,
        None if step is None else round(step),
        None if reach is None else step_in_words(backtest, reach),
        rehearsals,
    )


def _reach(rows: list[BacktestRow]) -> float | None:
    """The horizon up to which the mean error of each class was low; 1 is as far as trust goes."""
    reach = None
    for end, found in zip(HORIZONS, by_horizon(rows), strict=False):
        mean = mean_of([row.error for row in found])
        if mean is None:
            continue
        if mean > TRUSTED:
            break
        reach = end
    return reach


def _by_the_past(backtest: Backtest, found: RunVerdict, target: JudgedTarget | None) -> tuple[Level, str]:
    """Level and headline as long as nothing was scored."""
    past, steps = found.rehearsals, backtest.steps
    mean, plain = past.mean_error, with_article(found.method or "")
    if len(steps) < 3:
        return "unknown", not_judged("", steps).headline
    if past.near < TOO_FEW:
        return "unknown", _too_few(backtest, past)
    assert mean is not None
    rehearsed = f"in {counted(past.near, 'rehearsal')} {within_one(backtest)}"
    if mean >= 1:
        whom = "no method" if found.method is None else plain
        no_nearer = "came nearer" if found.method is None else "came no nearer"
        return "bad", f"Keep the last checkpoint: {rehearsed}, {whom} {no_nearer} to the real weights"
    use = f"use {plain}"
    if target is not None:
        level, why = _of_target(backtest, found, target)
        if level != "good":
            return level, f"{capital(target.named)}: {why}"
        of = counted(target.rehearsals, "rehearsal")
        use = f"{target.named} by {plain}, expected error {_expected(target)} ({of})"
    sound = found.reach is not None and not past.worse and past.near >= FEW and mean <= PROMISING
    if sound:
        how_far = "" if target is not None else f", up to {with_horizon(backtest, found.reach or 0.0)}"
        return "good", f"Extrapolation looks promising: {use}{how_far}"
    if found.reach is None:
        return "care", f"Extrapolate with care: {use}, with little trust"
    return "care", f"Extrapolate with care: {use}, up to {with_horizon(backtest, found.reach)}"


def _of_target(backtest: Backtest, found: RunVerdict, target: JudgedTarget) -> tuple[Level, str]:
    """What speaks against one target."""
    error, horizon = target.expected_error, target.horizon
    plain = with_article(found.method or "")
    if horizon is not None and horizon <= 0:
        return "good", ""
    if error is None:
        return "care", "nothing as far ahead as that could be rehearsed, so no error can be expected"
    said = f"expected error {_expected(target)} ({counted(target.rehearsals, 'rehearsal')})"
    if error >= 1:
        return "bad", f"keep the last checkpoint: {said}, and 1 is what doing nothing gives"
    if error >= LOST:
        return "bad", f"keep the last checkpoint: {said}, and all such predictions scored worse"
    reach = found.reach
    if reach is None:
        return "care", f"{said}, and the past trusts {plain} at no horizon"
    if horizon is not None and is_beyond(horizon, reach, backtest.clock.times(backtest.steps)):
        known = with_horizon(backtest, reach)
        return "care", f"{said}, and it lies beyond {known}, up to which the past trusts {plain}"
    if error >= PROMISING:
        return "care", f"{said}: weights come nearer, scores may not"
    return "good", ""


def _expected(target: JudgedTarget) -> str:
    return with_stderr(target.expected_error, target.expected_error_stderr)


def _too_few(backtest: Backtest, past: Rehearsals) -> str:
    """Why nothing can be judged, with the number of rehearsals there were."""
    if not past.count:
        why = f"its {len(backtest.steps)} checkpoints do not allow one"
        if any(len(group) > 1 for group in backtest.same_weights):
            why = f"its {len(backtest.steps)} checkpoints do not differ enough"
        elif backtest.unforeseen:
            why = "the learning rate never said when later steps would be; the clock `steps` needs none"
        return f"Nothing could be rehearsed: {why}"
    if not past.near:
        return f"Too few rehearsals to judge: only {past.count}, beyond {with_horizon(backtest, 1.0)}"
    return f"Too few rehearsals to judge: only {past.near} {within_one(backtest)}"
