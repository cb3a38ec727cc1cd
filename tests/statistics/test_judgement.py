"""The one verdict: every branch, with the order in which they count."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from hubextrap.statistics import (
    Backtest,
    BacktestRow,
    GramTable,
    JudgedTarget,
    ScoreOutcome,
    backtest_table,
    judge_run,
    not_judged,
    trust,
)

STEPS = (0, 100, 400)
LINE = "the line from the first step"


def backtest(
    *errors: float, horizons: Sequence[float] = (0.25, 0.5, 1.0), steps: Sequence[int] = STEPS
) -> Backtest:
    """One method's rows with these errors; the horizons are taken in turn."""
    rows = [
        BacktestRow("two_point", 100 + at, 200 + at, horizons[at % len(horizons)], error, None)
        for at, error in enumerate(errors)
    ]
    return Backtest(tuple(steps), tuple(rows), 0.0, False, (), None)


def score(
    outcome: str, task: str = "radd exact_match", label: str = "prediction", step: int = 400
) -> ScoreOutcome:
    value = {"better": 0.9, "worse": 0.37, "no difference": 0.83}.get(outcome)
    change = None if value is None else value - 0.828
    interval = None if change is None else (change - 0.03, change + 0.03)
    reason = "lm-eval failed" if outcome == "failed" else ""
    return ScoreOutcome(label, step, task, value, 0.828, change, interval, outcome, reason)  # type: ignore[arg-type]


def target(error: float | None, horizon: float = 0.5) -> JudgedTarget:
    return JudgedTarget("step 600", horizon, error, 7)


GOOD, USELESS, WIDE = [0.2] * 6, [1.2] * 6, [0.55] * 6


@pytest.mark.parametrize(
    ("errors", "level", "headline"),
    [
        ([], "unknown", "Nothing could be rehearsed: its 3 checkpoints do not allow one"),
        ([0.2], "unknown", "Too few rehearsals to judge: only 1 within a horizon of 1 (from here, step 800)"),
        (
            [0.2, 0.2],
            "unknown",
            "Too few rehearsals to judge: only 2 within a horizon of 1 (from here, step 800)",
        ),
        (
            [0.2] * 3,
            "care",
            f"Extrapolate with care: use {LINE}, up to step 800 (horizon 1)",
        ),
        (
            [0.2] * 5,
            "care",
            f"Extrapolate with care: use {LINE}, up to step 800 (horizon 1)",
        ),
        (
            GOOD,
            "good",
            f"Extrapolation looks promising: use {LINE}, up to step 800 (horizon 1)",
        ),
        (
            [*GOOD, 1.1],
            "care",
            f"Extrapolate with care: use {LINE}, up to step 800 (horizon 1)",
        ),
        (WIDE, "care", f"Extrapolate with care: use {LINE}, up to step 800 (horizon 1)"),
        ([0.7] * 6, "care", f"Extrapolate with care: use {LINE}, with little trust"),
        (USELESS, "bad", "Keep the last checkpoint: in 6 rehearsals within a horizon of 1"),
    ],
)
def test_by_the_past_of_a_run(errors: list[float], level: str, headline: str) -> None:
    found = judge_run(backtest(*errors))
    assert found.level == level
    assert found.headline.startswith(headline)
    assert found.line == f"{found.mark} {found.headline}"
    assert (found.rehearsals.near, found.rehearsals.worse) == (len(errors), sum(one > 1 for one in errors))


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_rehearsals_that_are_all_too_far_are_too_few_whatever_they_came_to(count: int) -> None:
    """A table that says .551 beside "no method beats the last checkpoint" is what this is about."""
    found = judge_run(backtest(*[0.551] * count, horizons=(1.5, 4.0)))
    assert found.level == "unknown"
    assert found.headline == f"Too few rehearsals to judge: only {count}, beyond step 800 (horizon 1)"
    assert found.method is None
    assert trust(found, 400) is None


@pytest.mark.parametrize(
    ("errors", "error", "horizon", "level", "said"),
    [
        (GOOD, 0.3, 0.5, "good", f"step 600 by {LINE}, expected error 0.30"),
        (GOOD, 0.5, 0.5, "care", "expected error 0.50 (7 rehearsals): weights come nearer, scores may not"),
        (GOOD, 0.8, 0.5, "bad", "Step 600: keep the last checkpoint: expected error 0.80 (7 rehearsals)"),
        (GOOD, 1.0, 0.5, "bad", "Step 600: keep the last checkpoint: expected error 1.00 (7 rehearsals)"),
        (
            GOOD,
            0.3,
            1.5,
            "care",
            f"lies beyond step 800 (horizon 1), up to which the past trusts {LINE}",
        ),
        (GOOD, None, 0.5, "care", "nothing as far ahead as that could be rehearsed"),
        ([0.7] * 6, 0.3, 0.5, "care", f"the past trusts {LINE} at no horizon"),
        (USELESS, 0.3, 0.5, "bad", "Keep the last checkpoint: in 6 rehearsals"),
        ([0.2], 0.3, 0.5, "unknown", "Too few rehearsals to judge: only 1"),
    ],
)
def test_of_a_target(errors: list[float], error: float | None, horizon: float, level: str, said: str) -> None:
    found = judge_run(backtest(*errors), target=target(error, horizon))
    assert found.level == level
    assert said in found.headline


@pytest.mark.parametrize(
    ("outcomes", "level", "headline"),
    [
        (["better"], "good", "The prediction scored better than the last checkpoint: radd exact_match 0.900"),
        (["worse"], "bad", "The prediction scored worse than the last checkpoint: radd exact_match 0.370"),
        (["no difference"], "care", "The prediction scored no better than the last checkpoint"),
        (["failed"], "unknown", "The evaluation failed: lm-eval failed"),
        (
            ["better", "failed"],
            "unknown",
            "The evaluation failed: lm-eval failed; where it did not, better: ",
        ),
        (["worse", "failed"], "bad", "The prediction scored worse"),
        (
            ["worse", "better"],
            "care",
            "The prediction scored worse than the last checkpoint: t0 0.370 against 0.828",
        ),
        (["not judged"], "care", "The prediction was scored, with nothing to judge it by"),
    ],
)
@pytest.mark.parametrize("errors", [GOOD, USELESS, [0.2]])
def test_scores_outrank_weights(outcomes: list[str], level: str, headline: str, errors: list[float]) -> None:
    tasks = ["radd exact_match"] if len(outcomes) == 1 else [f"t{at}" for at in range(len(outcomes))]
    scores = [score(outcome, task) for outcome, task in zip(outcomes, tasks, strict=True)]
    found = judge_run(backtest(*errors), scores=scores)
    assert found.level == level
    assert found.headline.startswith(headline)
    assert any(sentence.startswith("By the weights alone: ") for sentence in found.sentences)
    assert not any("All this is about weights" in sentence for sentence in found.sentences)


def test_several_predictions_are_told_apart() -> None:
    near, far = (
        score("better", step=300, label="prediction 1"),
        score("worse", step=400, label="prediction 2"),
    )
    found = judge_run(backtest(*GOOD), scores=[near, far])
    assert found.level == "care"
    assert "of step 400 scored worse" in found.headline
    assert "of step 300 scored better" in found.headline
    assert judge_run(backtest(*GOOD), scores=[far, score("worse", step=300)]).level == "bad"


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_checkpoints(count: int) -> None:
    steps = tuple(range(count))
    for found in (judge_run(backtest(steps=steps)), not_judged("no reason given", steps)):
        assert found.level == "unknown"
        assert (
            found.headline == f"{count} checkpoint{'s' * (count > 1)} cannot be judged: a rehearsal needs 3"
        )


def test_as_json() -> None:
    found = judge_run(backtest(*GOOD), target=target(0.3), scores=[score("better")])
    said = json.loads(json.dumps(found.as_dict()))
    assert (said["level"], said["mark"], said["headline"]) == ("good", "✓", found.headline)
    assert said["rehearsals"] == {
        "count": 6, "near": 6, "worse": 0, "mean_error": pytest.approx(0.2), "worst_error": 0.2
    }  # fmt: skip
    assert said["target"]["expected_error"] == 0.3
    assert said["scores"][0]["outcome"] == "better"
    assert (said["reach"], said["reach_step"], said["reach_in_words"]) == (1.0, 800, "step 800")


RNG = np.random.default_rng(5)
SLOPE, NOISE = RNG.standard_normal((2, 400))


def table_of(values: np.ndarray, steps: Sequence[int]) -> GramTable:
    moved = values - values[0]
    return GramTable(tuple(steps), ("w",), np.array([values.shape[1]]), (moved @ moved.T)[None])


def straight(steps: Sequence[int]) -> np.ndarray:
    return np.array(steps, dtype=float)[:, None] * SLOPE


@pytest.mark.parametrize(
    ("count", "level"), [(2, "unknown"), (3, "unknown"), (4, "unknown"), (5, "care"), (8, "good")]
)
def test_a_straight_run_of_so_many_checkpoints(count: int, level: str) -> None:
    steps = range(0, 10 * count, 10)
    found = judge_run(backtest_table(table_of(straight(steps), steps)))
    assert found.level == level


def test_an_early_transient_is_no_reason_for_a_line_from_step_0() -> None:
    steps = range(0, 100, 10)
    for until, level in ((10, "good"), (20, "care")):  # from step 10 the way to 20 could not be foreseen
        values = straight(steps) + 60 * np.minimum(np.array(steps) / until, 1)[:, None] * NOISE
        found = judge_run(backtest_table(table_of(values, steps)))
        assert found.level == level
        assert found.method == "least_squares(window=half, through_last=true)"


def test_a_random_walk_is_bad() -> None:
    steps = range(0, 100, 10)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(10, 4000)), axis=0)
    found = judge_run(backtest_table(table_of(walk, steps)))
    assert found.level in ("bad", "care")
    assert found.reach is None


def test_rounding_to_bf16_is_told_and_does_not_decide() -> None:
    steps = range(0, 100, 10)
    rounding = np.random.default_rng(1).normal(size=(10, 400)) * 8
    found = backtest_table(table_of(straight(steps) + rounding, steps), dtypes=["BF16"])
    assert found.rounded
    verdict = judge_run(found)
    assert verdict.level == "good"
    assert any("stored in 16 bits" in sentence for sentence in verdict.sentences)
