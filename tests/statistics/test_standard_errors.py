"""Standard errors of what a sample says: those of a plain jackknife, and of many samples."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sampled_runs import TIMES, exact_table, made_run, plain_stderr, sampled_table

from hubextrap.clocks import RateClock, RateHistory
from hubextrap.methods import Rule
from hubextrap.statistics import (
    Backtest,
    BacktestCandidate,
    GramTable,
    backtest_memory,
    backtest_table,
    brief_backtest,
    candidates,
    expect_of_last,
    horizon_means,
)
from hubextrap.statistics.calibration import expectations_of_last
from hubextrap.statistics.spread import norm_stderrs

FIGURES = ("relative_error", "expected_relative_error", "signal_error", "expected_signal_error")
TRIED = (
    BacktestCandidate.of("calibrated"),
    BacktestCandidate.of("late_lines"),
    BacktestCandidate.of("low_rank"),
    BacktestCandidate.of("two_point", base_step="auto"),
    BacktestCandidate.of("least_squares", "auto"),
    BacktestCandidate("two rules", (Rule(("t1*",), "ema"), Rule(("*",), "calibrated"))),
)
RATES = tuple(1e-5 if step <= 40 else 3e-5 for step in range(1, 81))
NEW_PEAK = RateClock(RateHistory(tuple(range(1, 81)), RATES))
"""From step 40 on three times as fast, which makes all earlier times other ones."""
SIZES = (20000, 300, 30000, 5000)
"""Of the second, 1024 weights are all."""


def figures_of(found: Backtest, suffix: str = "") -> NDArray[np.float64]:
    return np.array([[getattr(row, name + suffix) for name in FIGURES] for row in found.rows], dtype=float)


@pytest.fixture(scope="module")
def plain() -> GramTable:
    return sampled_table(made_run(SIZES), 1024)


@pytest.fixture(scope="module")
def rounded() -> GramTable:
    return sampled_table(made_run(SIZES, noise=0.02, rounding=0.25), 1024)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "rounded", "clock"])
def test_they_are_a_plain_jackknifes(kind: str, plain: GramTable, rounded: GramTable) -> None:
    table = {"plain": plain, "rounded": rounded, "clock": replace(plain, clock=NEW_PEAK)}[kind]
    dtypes = ["BF16"] if kind == "rounded" else ["F32"]
    found = backtest_table(table, TRIED, dtypes=dtypes)
    assert found.rounded == (kind == "rounded")
    stated = figures_of(found, "_stderr")
    by_hand = plain_stderr(table, lambda one: figures_of(backtest_table(one, TRIED, dtypes=dtypes)))
    values = figures_of(found)
    assert (np.isnan(stated) == np.isnan(values)).all()
    known = ~np.isnan(values)
    assert known.sum() >= {"plain": 95, "rounded": 190, "clock": 50}[kind]
    # they are linearised
    assert stated[known] == pytest.approx(by_hand[known], rel=0.12, abs=2e-4)
    off = by_hand > 1e-4  # a line through all there is has no error
    assert np.median(stated[off] / by_hand[off]) == pytest.approx(1, abs=0.02)
    assert np.median(by_hand[known]) > 0.003


def test_of_what_all_checkpoints_let_expect(plain: GramTable, rounded: GramTable) -> None:
    rules = (Rule(("*",), "calibrated"),)
    for table, is_rounded in ((plain, False), (rounded, True)):

        def expected(one: GramTable, is_rounded: bool = is_rounded) -> NDArray[np.float64]:
            found = expect_of_last(rules, one, 110, is_rounded)
            return np.array([found.total, found.signal if is_rounded else 0.0])

        found = expect_of_last(rules, table, 110, is_rounded)
        by_hand = plain_stderr(table, expected)
        assert found.total_stderr == pytest.approx(by_hand[0], rel=0.05)
        if is_rounded:
            assert found.signal_stderr == found.stderr == pytest.approx(by_hand[1], rel=0.12)
        else:
            assert found.signal_stderr is None
            assert found.stderr == found.total_stderr
        without = expect_of_last(rules, replace(table, sample=None), 110, is_rounded)
        assert (without.total, without.signal) == (found.total, found.signal)
        assert without.stderr is without.total_stderr is without.signal_stderr is None


def test_a_target_of_which_nothing_can_be_expected_has_none(rounded: GramTable) -> None:
    """Beyond what was rehearsed, beside one within."""
    last = TIMES[-1]
    rules = [Rule(("*",), "two_point")]
    far, near = expectations_of_last(rules, rounded, [1000 * last, last + 10], True)
    assert (far.total, far.total_stderr, far.signal_stderr) == (None, None, None)
    assert near == expect_of_last(rules, rounded, last + 10, True)
    assert near.signal_stderr


def test_all_else_is_that_of_the_table(plain: GramTable) -> None:
    """Errors, verdicts and shares do not hang on how exact they are."""
    sampled, other = (backtest_table(table, TRIED[:2]) for table in (plain, replace(plain, sample=None)))
    assert (sampled.sampled, other.sampled, other.rounding_share_stderr) == (1024, None, None)
    np.testing.assert_array_equal(figures_of(sampled), figures_of(other))
    assert np.isnan(figures_of(other, "_stderr")).all()
    for mine, theirs in zip(sampled.as_rows(), other.as_rows(), strict=True):
        stderrs = {key: value for key, value in mine.items() if key.endswith("_stderr")}
        assert set(stderrs) == {"relative_error_stderr", "expected_relative_error_stderr"}
        assert mine == theirs | stderrs
    brief = brief_backtest((Rule(("*",), "calibrated"),), plain, False, 1.0)
    full = {(row.last_step, row.target_step): row for row in sampled.rows if row.method == "calibrated"}
    assert brief.rows
    for row in brief.rows:
        assert row.error_stderr == full[row.last_step, row.target_step].error_stderr
        assert row.expected_error_stderr is None


def test_a_sample_that_is_all_weights_has_no_error() -> None:
    run = made_run((100, 200))
    found = backtest_table(sampled_table(run, 256), TRIED[:1])
    stated = figures_of(found, "_stderr")
    assert np.nanmax(stated) == 0.0
    assert found.rounding_share_stderr == 0.0
    np.testing.assert_allclose(
        figures_of(found), figures_of(backtest_table(exact_table(run), TRIED[:1])), rtol=1e-6, atol=2e-6
    )


@pytest.mark.slow
def test_some_tensors_at_a_time_come_to_the_same(
    plain: GramTable, rounded: GramTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = ((plain, "F32"), (rounded, "BF16"))
    whole = [figures_of(backtest_table(table, TRIED, dtypes=[dtype]), "_stderr") for table, dtype in tables]
    monkeypatch.setattr("hubextrap.statistics.backtesting.FIT_MEMORY", 1)
    monkeypatch.setattr("hubextrap.statistics.backtesting.KEPT_MEMORY", 0)
    for before, (table, dtype) in zip(whole, tables, strict=True):
        parts = figures_of(backtest_table(table, TRIED, dtypes=[dtype]), "_stderr")
        np.testing.assert_allclose(parts, before, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_some_tensors_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest are taken for certain, of the others some: about what all of them say."""
    sizes = [2000] * 50 + [20000]
    table = sampled_table(made_run(sizes), 128)
    every = figures_of(backtest_table(table, TRIED[:2]), "_stderr")
    monkeypatch.setattr("hubextrap.statistics.jackknife.STDERR_TENSORS", 24)
    some = figures_of(backtest_table(table, TRIED[:2]), "_stderr")
    known = ~np.isnan(every)
    ratios = some[known] / every[known]
    assert not np.array_equal(some[known], every[known])
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    assert ((ratios > 0.6) & (ratios < 1.6)).all()


@pytest.mark.slow
def test_so_far_do_many_samples_spread() -> None:
    run = made_run((30000, 20000, 30000))
    exact = figures_of(backtest_table(exact_table(run), TRIED[:2]))[:, :2]
    values, stated = [], []
    for seed in range(60):
        found = backtest_table(sampled_table(run, 512, seed), TRIED[:2])
        values.append(figures_of(found)[:, :2])
        stated.append(figures_of(found, "_stderr")[:, :2])
    known = ~np.isnan(exact)
    spread = np.std(values, axis=0, ddof=1)[known]
    typical = np.sqrt(np.mean(np.square(stated), axis=0))[known]
    ratios = typical / spread
    assert np.median(ratios) == pytest.approx(1, abs=0.15)
    assert ((ratios > 0.65) & (ratios < 1.5)).all()
    off = np.abs(np.array(values) - exact)[:, known] / np.array(stated)[:, known]
    assert (off < 3).mean() >= 0.97


def test_of_the_rounding_and_of_norms(rounded: GramTable) -> None:
    found = backtest_table(rounded, [], dtypes=["BF16"])
    by_hand = plain_stderr(
        rounded, lambda one: np.array(backtest_table(one, [], dtypes=["BF16"]).rounding_share)
    )
    # of the smallest of seven eigenvalues that are nearly the same, which a group more or less may exchange
    assert found.rounding_share_stderr == pytest.approx(float(by_hand), rel=0.25)
    stated = norm_stderrs(rounded)
    assert stated.shape == (len(SIZES), len(TIMES))
    for tensor in range(len(SIZES)):
        norms = plain_stderr(rounded, lambda one, at=tensor: np.sqrt(np.diagonal(one.gram[at])))  # type: ignore[misc]
        np.testing.assert_allclose(stated[tensor], norms, rtol=1e-3, atol=1e-12)
    assert (stated[1] == 0).all()
    assert (stated[[0, 2, 3], 1:] > 0).all()


def test_of_the_means_of_a_table(plain: GramTable) -> None:
    found = backtest_table(plain, TRIED[:2])
    for entry in horizon_means(found):
        rows = found.shared_rows()[entry.method]
        last = [row.error_stderr for row in rows if row.horizon > 1]
        assert [mean is None for mean in entry.means] == [stderr is None for stderr in entry.stderrs]
        assert entry.stderrs[-1] == pytest.approx(np.mean(last))  # type: ignore[arg-type]
        assert entry.worst_stderr == max(rows, key=lambda row: row.error).error_stderr
        assert entry.expected_stderr is not None
        assert entry.total_stderr == pytest.approx(np.mean([row.error_stderr for row in rows]))  # type: ignore[arg-type]
    for entry in horizon_means(backtest_table(replace(plain, sample=None), TRIED[:2])):
        assert entry.stderrs == (None,) * 4
        assert entry.worst_stderr is entry.expected_stderr is entry.total_stderr is None


@pytest.mark.slow
def test_it_takes_no_more_memory_than_is_said() -> None:
    steps = tuple(range(0, 160, 10))
    table = sampled_table(made_run([400] * 80, steps, noise=0.2, rounding=0.3), 256, steps=steps)
    tracemalloc.start()
    try:
        backtest_table(table, candidates(), dtypes=["BF16"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= backtest_memory(steps, sampled=True)
