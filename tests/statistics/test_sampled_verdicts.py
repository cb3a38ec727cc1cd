"""What a verdict says of figures that come from a sample, and when their error could turn it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sampled_runs import made_run, sampled_table

from hubextrap.statistics import (
    Backtest,
    BacktestRow,
    JudgedTarget,
    Linearity,
    ScoreOutcome,
    backtest_table,
    judge_run,
)
from hubextrap.statistics.linearity import BINS, spread_counts

WHAT_TO_DO = 'Reading all weights settles it (`--exact`; in Python, sample="exact").'


def backtest(
    errors: Sequence[float],
    stderr: float | None,
    method: str = "two_point",
    horizons: Sequence[float] = (0.25, 0.5, 1.0),
) -> Backtest:
    rows = [
        BacktestRow(
            method, 100 + at, 200 + at, horizons[at % len(horizons)], error, error, None, None, stderr, stderr
        )
        for at, error in enumerate(errors)
    ]
    sampled = None if stderr is None else 4096
    return Backtest((0, 100, 400), tuple(rows), 0.0, False, (), None, sampled=sampled)


@pytest.mark.parametrize(
    ("errors", "stderr", "said"),
    [
        ([0.2] * 6, 0.01, None),
        ([0.49] * 6, 0.004, None),
        ([0.49] * 6, 0.006, "with errors 2 standard errors higher it would be “⚠ Extrapolate with care: "),
        ([0.51] * 6, 0.006, "with errors 2 standard errors lower it would be “✓ Extrapolation looks promisi"),
        (
            [0.4, 0.4, 0.595] * 2,
            0.003,
            "would be “✓ Extrapolation looks promising: use the line from the first step, up to step 600",
        ),
        ([0.99] * 6, 0.006, "higher it would be “✕ Keep the last checkpoint: in 6 rehearsals"),
        ([1.01] * 6, 0.006, "lower it would be “⚠ Extrapolate with care: "),
        ([0.2, 0.2, 0.99] * 2, 0.006, "higher it would be “⚠ "),
        ([0.2] * 2, 0.3, None),
        ([0.5] * 6, 0.3, "with errors 2 standard errors higher it would be “✕"),
    ],
)
def test_what_could_turn_it(errors: list[float], stderr: float, said: str | None) -> None:
    found = judge_run(backtest(errors, stderr))
    assert found.rehearsals.mean_error_stderr == pytest.approx(stderr)
    exact = judge_run(backtest(errors, None))
    assert (found.level, found.headline, found.method) == (exact.level, exact.headline, exact.method)
    assert exact.turns is exact.rehearsals.mean_error_stderr is None
    assert not any("±" in sentence or "sample" in sentence for sentence in exact.sentences)
    if said is None:
        assert found.turns is None
        return
    assert found.turns is not None
    assert found.turns.startswith("The sample's standard error could turn this verdict: ")
    assert found.turns.endswith(WHAT_TO_DO)
    assert said in found.turns
    assert found.sentences.count(found.turns) == 1
    assert found.sentences[-1].startswith("All this is about weights.")


def test_both_ways() -> None:
    turns = judge_run(backtest([0.55] * 6, 0.3)).turns
    assert turns is not None
    assert "higher it would be “✕ Keep" in turns
    assert ", and with errors 2 standard errors lower it would be “✓ " in turns


@pytest.mark.parametrize(
    ("error", "stderr", "said"),
    [
        (0.3, 0.01, None),
        (0.49, 0.01, "higher it would be “⚠ Step 600: expected error 0.51 ± 0.01 (7 rehearsals)"),
        (0.79, 0.01, "higher it would be “✕ Step 600: keep the last checkpoint: expected error 0.81 ± 0.01"),
    ],
)
def test_of_a_target(error: float, stderr: float, said: str | None) -> None:
    target = JudgedTarget("step 600", 0.5, error, 7, stderr)
    found = judge_run(backtest([0.2] * 6, 0.001), target=target)
    assert f"expected error {error:.2f} ± 0.01 (7 rehearsals)" in found.headline
    assert (found.turns is None) if said is None else (found.turns is not None and said in found.turns)
    assert found.as_dict()["target"]["expected_error_stderr"] == stderr
    exact = judge_run(backtest([0.2] * 6, None), target=replace(target, expected_error_stderr=None))
    assert f"expected error {error:.2f} (7 rehearsals)" in exact.headline


def test_what_was_scored_no_sample_turns() -> None:
    score = ScoreOutcome("prediction", 600, "radd", 0.9, 0.8, 0.1, (0.05, 0.15), "better")
    found = judge_run(backtest([0.49] * 6, 0.01), scores=[score])
    assert found.level == "good"
    assert found.turns is None
    assert not any("could turn" in sentence for sentence in found.sentences)
    assert any("0.49 ± 0.01" in sentence for sentence in found.sentences)


def test_a_second_method_within_the_error_is_named_and_turns_nothing() -> None:
    near, far = (
        replace(one, rows=one.rows + backtest([other] * 6, 0.01, "late_lines").rows)
        for one, other in ((backtest([0.2] * 6, 0.01), 0.212), (backtest([0.2] * 6, 0.01), 0.23))
    )
    said = "The late lines (fixed) came as near within the sample's error: on average 0.21 ± 0.01."
    assert said in judge_run(near).sentences
    assert judge_run(near).turns is None
    assert not any("came as near" in sentence for sentence in judge_run(far).sentences)


def test_as_json() -> None:
    said = json.loads(json.dumps(judge_run(backtest([0.49] * 6, 0.01)).as_dict()))
    assert said["turns"].startswith("The sample's standard error")
    assert said["rehearsals"]["mean_error_stderr"] == pytest.approx(0.01)
    exact = json.loads(json.dumps(judge_run(backtest([0.49] * 6, None)).as_dict()))
    assert "turns" not in exact
    assert "mean_error_stderr" not in exact["rehearsals"]


def test_words_of_a_real_sample() -> None:
    table = sampled_table(made_run([20000, 30000], noise=0.02, rounding=0.4), 1024)
    said = judge_run(backtest_table(table, dtypes=["BF16"])).sentences
    text = " ".join(said)
    for words in ("on average 0.", "Rounding makes up ", "Beforehand, 0."):
        assert words in text
        assert " ± " in text.split(words, 1)[1][:9]
    same = replace(table, gram=0 * table.gram)
    assert any(
        sentence.startswith("Beware: as far as the sampled weights show, all 7 checkpoints hold the same")
        for sentence in judge_run(backtest_table(same)).sentences
    )


def test_linearity_by_hand() -> None:
    rng = np.random.default_rng(0)
    elements = np.array([100_000, 50_000, 64])
    drawn = (400, 400, 16)  # in each group; the third is drawn whole
    by_group = np.stack(
        [
            [
                np.bincount(
                    np.minimum((rng.beta(2 + tensor, 2, size) * (BINS + 3)).astype(int), BINS + 2),
                    minlength=BINS + 3,
                )
                for _ in range(4)
            ]
            for tensor, size in enumerate(drawn)
        ]
    )
    counts = np.array(
        [spread_counts(groups.sum(axis=0), size) for groups, size in zip(by_group, elements, strict=True)]
    )
    found = Linearity.of_sample(counts, by_group, elements)
    assert replace(found, median_stderr=None, share_linear_stderr=None, share_kept_stderr=None).as_dict() == (
        Linearity.from_counts(counts.sum(axis=0)).as_dict()
    )
    variance = np.zeros(3)
    for tensor, factor in ((0, 0.75 * (1 - 0.016)), (1, 0.75 * (1 - 0.032))):
        without = []
        for group in range(4):
            others = np.delete(by_group[tensor], group, axis=0).sum(axis=0)
            one = counts.copy()
            one[tensor] = spread_counts(others, int(elements[tensor]))
            less = Linearity.from_counts(one.sum(axis=0))
            without.append([less.median, less.share_linear, less.share_kept])
        variance += factor * ((np.array(without) - np.mean(without, axis=0)) ** 2).sum(axis=0)
    stated = [found.median_stderr, found.share_linear_stderr, found.share_kept_stderr]
    assert stated == pytest.approx(np.sqrt(variance), rel=0.01)
    assert found.as_dict()["median_r_squared_stderr"] == found.median_stderr
    assert found.as_dict()["share_r_squared_above_0.7_stderr"] == found.share_linear_stderr
    unmoved = np.zeros_like(by_group)
    unmoved[..., BINS] = by_group.sum(axis=-1)
    none = Linearity.of_sample(unmoved.sum(axis=1), unmoved, elements)
    assert none.median is none.median_stderr is none.share_linear_stderr is None
