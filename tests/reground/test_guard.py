"""When a jump is refused, undone, shortened and lengthened."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError
from hubextrap.regrounding import RULES, Judgement, Window, judge_jump, judge_probe, snapshot_steps

TWO = [Window(0, 20), Window(80, 100)]
FIVE = [Window(80 * index, 80 * index + 20) for index in range(5)]


def gram_of(windows: list[Window], motions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1, K, K) for windows with these (w, size) motions, each jump continuing the window before it."""
    points, here = {}, np.zeros(motions.shape[1])
    for index, (window, motion) in enumerate(zip(windows, motions, strict=True)):
        if index:
            before = windows[index - 1]
            here = here + motions[index - 1] * (window.start - before.end) / before.steps
        points[window.start] = here
        here = here + motion
        points[window.end] = here
    deltas = np.stack([points[step] for step in snapshot_steps(windows)])
    return (deltas @ deltas.T)[None]


def judged(*motions: list[float], n: int = 60, **options: object) -> Judgement:
    windows = FIVE[: len(motions)] if len(motions) > 2 else TWO[: len(motions)]
    values = np.array(motions, dtype=np.float64)
    return judge_jump(windows, n, "two_point", gram_of(windows, values), **options)  # type: ignore[arg-type]


def test_a_straight_run_may_jump() -> None:
    found = judged([1.0, 0.0], [1.0, 0.0])
    assert found.jump
    assert found.backtest_error == pytest.approx(0.0, abs=1e-7)
    assert found.expected_relative_error == pytest.approx(0.0, abs=1e-7)


def test_the_backtest_is_the_last_window_predicted_at_its_start() -> None:
    before, last = np.array([1.0, 0.5]), np.array([0.8, -0.1])
    found = judged(before.tolist(), last.tolist())
    expected = np.linalg.norm(before - last) / np.linalg.norm(last)
    assert found.backtest_error == pytest.approx(expected)
    assert found.jump is bool(expected <= 1.0)
    assert f"backtest {expected:.3g}" in found.reason


def test_a_jump_is_no_witness_for_itself() -> None:
    """The jump between the windows followed the first one's line exactly; training then turned."""
    found = judged([1.0, 0.0], [0.0, 1.0])
    assert found.backtest_error == pytest.approx(math.sqrt(2.0))
    assert not found.jump
    assert found.reason == "expected error 1.41, backtest 1.41: above 1 (1 is standing still)"


def test_the_first_window_jumps_only_with_a_probe_or_without_a_guard() -> None:
    found = judged([1.0, 0.0])
    assert not found.jump
    assert found.reason == "the first window: there is no earlier one to backtest on"
    assert judged([1.0, 0.0], probed=True).jump
    assert judged([1.0, 0.0], max_error=None).jump


def test_a_jump_beyond_all_rehearsed_horizons_is_refused() -> None:
    found = judged([1.0, 0.0], [1.0, 0.0], n=2000)
    assert not found.jump
    assert found.reason == (
        "n = 2000 is 50 times the 40 steps of training at hand, and they have rehearsed no horizon that long "
        "(at most 1); choose a smaller n or a larger m"
    )
    assert judged([1.0, 0.0], [1.0, 0.0], n=1).jump, "shorter than rehearsed is no reason"


def test_without_a_threshold_nothing_is_refused_and_all_is_measured() -> None:
    found = judged([1.0, 0.0], [-1.0, 0.0], max_error=None)
    assert found.jump
    assert found.backtest_error == pytest.approx(2.0)
    assert found.reason == "the guard is off"


@pytest.mark.parametrize("max_error", [None, 1.0])
@pytest.mark.parametrize("probed", [False, True])
def test_a_window_that_moved_nothing_is_nothing_to_jump_along(max_error: float | None, probed: bool) -> None:
    for motions in ([[0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]):
        found = judged(*motions, max_error=max_error, probed=probed)
        assert not found.jump
        assert found.reason == "the last window moved no weight, so there is no line to jump along"
        assert found.expected_relative_error is None
    assert judged([0.0, 0.0], [1e-9, 0.0], max_error=None).jump


def test_rounding_of_inner_products_is_no_motion() -> None:
    """The same snapshot twice has, by another order of summation, not quite the same inner products."""
    moved = gram_of(TWO, np.array([[1.0, 0.5], [0.0, 0.0]]))
    first, last = snapshot_steps(TWO).index(80), snapshot_steps(TWO).index(100)
    for error in (-4e-15, 4e-15):
        gram = moved.copy()
        gram[0, first, last] = gram[0, last, first] = gram[0, first, first] * (1 + error)
        assert not judge_jump(TWO, 60, "two_point", gram, max_error=None).jump


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_backtested_on_its_own_predictions(rule: str) -> None:
    random = np.random.default_rng(3)
    straight = np.ones((5, 200)) + 0.1 * random.normal(size=(5, 200))
    erratic = 0.05 * np.ones((5, 200)) + random.normal(size=(5, 200))
    good = judge_jump(FIVE, 60, rule, gram_of(FIVE, straight))
    bad = judge_jump(FIVE, 60, rule, gram_of(FIVE, erratic), max_error=0.5)
    assert good.jump
    assert not bad.jump
    assert good.backtest_error is not None
    assert bad.backtest_error is not None
    assert good.backtest_error < 0.3 < 0.7 < bad.backtest_error


@pytest.mark.parametrize(
    ("before", "after", "keep", "n", "said"),
    [
        (0.50, 0.40, False, 30, "harm above the margin 0.05; n 60 → 30"),
        (0.50, 0.46, True, 60, "probe 0.5 before, 0.46 after: margin 0.05"),
        (0.50, 0.54, True, 60, "margin 0.05"),
        (0.50, 0.60, True, 100, "a gain above the margin 0.05; n 60 → 100"),
        (0.50, math.nan, False, 30, "harm"),
        (0.50, -math.inf, False, 30, "harm"),
    ],
)
def test_the_probe_undoes_harm_and_sets_n(before: float, after: float, keep: bool, n: int, said: str) -> None:
    found = judge_probe(60, before, after, margin=0.05, longest=100)
    assert (found.keep, found.n) == (keep, n)
    assert said in found.reason


def test_n_ends_at_one_step_and_at_the_cap() -> None:
    assert judge_probe(1, 1.0, 0.0, margin=0.0, longest=9).n == 1
    assert judge_probe(9, 0.0, 1.0, margin=0.0, longest=9).n == 9


def test_a_probe_that_says_nothing_before_the_jump_is_an_error() -> None:
    with pytest.raises(MethodError, match="the probe returned nan"):
        judge_probe(60, math.nan, 0.5, margin=0.0, longest=60)
