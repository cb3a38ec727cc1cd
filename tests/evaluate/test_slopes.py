"""The slope of a score at the end of a run: which checkpoints count, its interval, what is said."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from evaluations import SETTINGS

from hubextrap.evaluation.logged import LoggedColumn
from hubextrap.evaluation.paired import paired_interval
from hubextrap.evaluation.slopes import logged_slope, score_interval, table_slopes
from hubextrap.evaluation.table import EvaluationTable, Row, Score


def score(
    value: float,
    *,
    problems: Sequence[float] | None = None,
    stderr: float | None = None,
    better: bool | None = True,
) -> Score:
    return Score(
        task="t", metric="m", filter="none", value=value, stderr=stderr, higher_is_better=better,
        problems=None if problems is None else tuple(map(float, problems)),
    )  # fmt: skip


def table_of(scores: dict[int, Score]) -> tuple[EvaluationTable, list[str]]:
    rows = tuple(
        Row(label=f"step {step}", step=step, reference=f"run/step_{step}", commit=None, scores=(one,))
        for step, one in scores.items()
    )
    return EvaluationTable(settings=SETTINGS, rows=rows), [row.label for row in rows]


def answered(right: dict[int, int], problems: int = 500) -> dict[int, Score]:
    """So many right answers at each step, each problem right from some step on for good."""
    return {
        step: score(count / problems, problems=[1] * count + [0] * (problems - count))
        for step, count in right.items()
    }


def test_the_line_is_fitted_to_the_last_half_of_the_checkpoints() -> None:
    right = {0: 400, 50: 0, 100: 100, 150: 110, 200: 120, 250: 130, 300: 140}
    (slope,) = table_slopes(*table_of(answered(right)))
    assert (slope.first_step, slope.last_step, slope.count, slope.problems) == (150, 300, 4, 500)
    assert slope.per_100_steps == pytest.approx(0.04)
    assert slope.value == pytest.approx(0.28)
    assert slope.interval is not None
    assert 0 < slope.interval[0] < 0.04 < slope.interval[1]
    low, high = (f"{bound:+.3f}" for bound in slope.interval)
    over = "per 100 steps over steps 150–300 (4 checkpoints, 500 problems)"
    assert slope.sentence == f"t m still rises: +0.040 [{low}, {high}] {over}"


@pytest.mark.parametrize(
    ("right", "direction", "said"),
    [
        ((250, 250, 250), "unclear", "t m: no rise seen: +0.000 [+0.000, +0.000]"),
        ((250, 251, 252), "unclear", "t m: no rise seen: +0.0020 ["),
        ((300, 280, 250), "falls", "t m falls: -0.050 ["),
    ],
)
def test_what_is_said_of_a_direction(right: Sequence[int], direction: str, said: str) -> None:
    (slope,) = table_slopes(*table_of(answered(dict(zip((0, 100, 200), right, strict=True)))))
    assert slope.direction == direction
    assert slope.sentence.startswith(said)
    assert slope.as_dict()["sentence"] == slope.sentence


def test_fewer_than_three_checkpoints_have_no_slope() -> None:
    assert table_slopes(*table_of(answered({0: 1, 100: 400}))) == ()
    scores = answered({0: 100, 100: 200}) | {200: score(math.nan, problems=None)}
    assert table_slopes(*table_of(scores)) == ()


def test_rows_that_are_not_the_run_s_do_not_count() -> None:
    table, labels = table_of(answered({0: 100, 100: 110, 200: 120, 300: 499}))
    (slope,) = table_slopes(table, labels[:-1])
    assert (slope.last_step, slope.per_100_steps) == (200, pytest.approx(0.02))


def test_problems_are_paired_and_the_interval_is_the_same_every_time() -> None:
    """What all checkpoints share is no doubt: of independent figures the interval would hold 0."""
    dice = np.random.default_rng(0)
    hard = dice.random(400)
    scores = {
        step: score(float(np.mean(hard < level)), problems=(hard < level).tolist())
        for step, level in ((0, 0.5), (100, 0.52), (200, 0.54))
    }
    (slope,) = table_slopes(*table_of(scores))
    assert slope.direction == "rises"
    assert table_slopes(*table_of(scores)) == (slope,)
    alone = {step: score(one.value, stderr=0.025) for step, one in scores.items()}
    (unpaired,) = table_slopes(*table_of(alone))
    assert unpaired.direction == "unclear"
    assert unpaired.per_100_steps == pytest.approx(slope.per_100_steps)
    assert unpaired.problems is None


def test_the_interval_holds_the_true_slope_in_95_of_100_cases() -> None:
    """Of problems drawn anew: each right with a chance of its own that grows alike."""
    dice, held, runs = np.random.default_rng(1), 0, 60
    for _ in range(runs):
        chance = dice.uniform(0.2, 0.6, 150)
        scores = {}
        for step in (0, 100, 200, 300, 400, 500):
            right = (dice.random(150) < chance + 0.0004 * step).astype(float)
            scores[step] = score(float(right.mean()), problems=right.tolist())
        (slope,) = table_slopes(*table_of(scores))
        assert slope.interval is not None
        held += slope.interval[0] <= 0.04 <= slope.interval[1]
    assert held >= 0.9 * runs


def test_problems_that_never_change_do_not_narrow_the_interval() -> None:
    """As in a difference of two checkpoints: what counts is how many changed, of how many."""
    changed = {0: [0.0] * 6, 100: [0.5] * 6, 200: [1.0] * 6}
    for others in (0.0, 0.3, 1.0):
        scores = {}
        for step, some in changed.items():
            problems = some + [others] * 494
            scores[step] = score(float(np.mean(problems)), problems=problems)
        (slope,) = table_slopes(*table_of(scores))
        theirs = paired_interval((0.5,) * 6 + (0.0,) * 494, (0.0,) * 500)
        assert slope.interval == pytest.approx(theirs, abs=1e-12), others


def test_without_problems_standard_errors_weigh() -> None:
    errors = {0: 0.001, 100: 0.001, 200: 1.0}
    (slope,) = table_slopes(*table_of({step: score(step / 1000, stderr=e) for step, e in errors.items()}))
    assert slope.per_100_steps == pytest.approx(0.1)
    bent = {0: score(0, stderr=0.001), 100: score(0.1, stderr=0.001), 200: score(9, stderr=1.0)}
    (slope,) = table_slopes(*table_of(bent))
    assert slope.per_100_steps == pytest.approx(0.1, abs=0.001)  # the last one hardly counts
    # by hand: two figures with errors of 0.001, 100 apart
    assert slope.interval is not None
    wide = (slope.interval[1] - slope.interval[0]) / 2
    assert wide == pytest.approx(1.96 * math.hypot(0.001, 0.001), rel=0.01)
    (bare,) = table_slopes(*table_of({step: score(step / 1000) for step in (0, 100, 200)}))
    assert (bare.interval, bare.direction) == (None, "unclear")
    assert "nothing says how far to trust it" in bare.sentence


def test_figures_that_stay_neither_rise_nor_fall() -> None:
    """A sum of rounded terms is not quite 0, and any direction would come of that."""
    for value in (0.1, 0.3, 0.7):
        for steps in ((0, 40, 80, 100, 120), (100, 200, 300), (7, 19, 61)):
            for one in (
                score(value, stderr=0.01),
                score(value, stderr=1e-12),
                score(value, problems=[value] * 50),
            ):
                (slope,) = table_slopes(*table_of(dict.fromkeys(steps, one)))
                assert slope.direction == "unclear", (value, steps)
                assert abs(slope.per_100_steps) < 1e-12


def test_where_lower_is_better() -> None:
    down = {step: score(9 - step / 100, stderr=0.01, better=False) for step in (0, 100, 200)}
    (slope,) = table_slopes(*table_of(down))
    assert slope.improves
    assert slope.sentence.startswith("t m still falls (lower is better): -1.000 [")
    up = {step: score(step / 100, stderr=0.01, better=False) for step in (0, 100, 200)}
    assert not table_slopes(*table_of(up))[0].improves


def test_small_slopes_are_written_with_digits() -> None:
    (slope,) = table_slopes(*table_of({step: score(step * 1e-6, stderr=1e-6) for step in (0, 100, 200)}))
    assert "+0.00010 [+0.00010, +0.00010]" in slope.sentence


def test_the_slope_of_what_a_trainer_logged() -> None:
    steps = tuple(range(10, 401, 10))
    wobble = [0.01 * (-1) ** number for number in range(40)]
    column = LoggedColumn("reward", steps, tuple(0.001 * s + w for s, w in zip(steps, wobble, strict=True)))
    slope = logged_slope(column)
    assert slope is not None
    assert (slope.first_step, slope.last_step, slope.count) == (210, 400, 20)
    assert slope.per_100_steps == pytest.approx(0.1, rel=0.05)
    assert slope.sentence.startswith("the trainer's reward still rises: +0.")
    assert slope.sentence.endswith("(20 logged values)")
    # as scipy's linregress has it
    from scipy.stats import linregress, t

    fit = linregress(steps[20:], column.values[20:])
    wide = 100 * float(t.ppf(0.975, 18)) * fit.stderr
    assert slope.interval == pytest.approx((100 * fit.slope - wide, 100 * fit.slope + wide))
    still = logged_slope(LoggedColumn("eval_loss", steps, (0.3,) * 40))
    assert still is not None
    assert still.sentence.startswith("the trainer's eval_loss: no fall seen (lower is better): +0.000 [")
    assert logged_slope(LoggedColumn("reward", (1, 2, 3), (0.0, 0.0, 1.0))) is None


def test_the_interval_of_one_score() -> None:
    right = score(0.9, problems=[1] * 18 + [0] * 2, stderr=0.07)
    # Wilson's, as statsmodels.stats.proportion.proportion_confint(18, 20, method="wilson") gives it
    assert score_interval(right) == pytest.approx((0.698966, 0.972135), abs=1e-5)
    assert score_interval(score(1.0, problems=[1] * 20, stderr=0.0)) == pytest.approx(
        (0.838875, 1.0), abs=1e-5
    )
    assert score_interval(score(0.5, problems=[0.25, 0.75], stderr=0.1)) == pytest.approx(
        (0.304, 0.696), abs=1e-3
    )
    assert score_interval(score(0.5)) is None
