"""Which clock windows go by, and what the guard finds along it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.clocks import STEPS
from hubextrap.errors import MethodError
from hubextrap.regrounding import Rates, Window, judge_jump, jump_coefficients, snapshot_steps, timing_of

PEAK = 2e-6


def rates(*shares: float, steps: int = 20) -> Rates:
    """Of as many updates as there are shares of the peak; of ``steps`` if there is one."""
    found = Rates()
    for share in shares:
        found = found.plus(share * PEAK, steps if len(shares) == 1 else 1)
    return found


def windows(*of_each: Rates | None) -> list[Window]:
    return [Window(80 * index, 80 * index + 20, one) for index, one in enumerate(of_each)]


def gram_of(run: list[Window], lengths: list[float]) -> NDArray[np.float64]:
    """(1, K, K): motions of these lengths along one direction, each jump going on for three windows more."""
    points, here = [], 0.0
    for length in lengths:
        points += [here, here + length]
        here += 4 * length
    assert len(points) == len(snapshot_steps(run))
    column = np.array(points)[:, None]
    return (column @ column.T)[None]


@pytest.mark.parametrize(
    ("of_each", "rate", "by_rate"),
    [
        ((1.0, 1.0), 1.0, False),
        ((1.0, 0.5), 0.5, True),
        ((1.0, 1.0), 0.5, True),  # it changes now
        ((0.5, 0.5), 0.5, False),  # it had changed before
        ((1.0, 1.0 - 1e-9), 1.0, False),  # a constant, in other digits
        ((1.0, None), 1.0, False),
        ((1.0, 0.5), None, False),
    ],
)
def test_auto_is_the_learning_rate_where_it_changed(
    of_each: tuple[float | None, ...], rate: float | None, by_rate: bool
) -> None:
    run = windows(*(None if share is None else rates(share) for share in of_each))
    now = None if rate is None else rate * PEAK
    found = timing_of(run, 60, "auto", now, PEAK)
    assert (found.clock.name == "learning_rate") is by_rate
    if not by_rate:
        assert (found.clock, found.ahead, found.windows, found.refusal) == (STEPS, 60, tuple(run), None)
    assert timing_of(run, 60, "steps", now, PEAK).clock is STEPS


def test_times_are_full_rate_steps_and_a_jump_is_at_the_rate_of_the_moment() -> None:
    run = windows(rates(1.0), rates(*[0.5, 1.0] * 10))
    found = timing_of(run, 60, "auto", 0.25 * PEAK)
    assert found.times == pytest.approx((0.0, 20.0, 35.0))
    assert found.ahead == 15.0
    # whatever the unit is, the line is the same
    (row,) = jump_coefficients(run, 60, "two_point", timing=found)
    (other,) = jump_coefficients(run, 60, "two_point", timing=timing_of(run, 60, "auto", PEAK / 4, 8 * PEAK))
    np.testing.assert_allclose(row, [0.0, 0.0, -1.0, 2.0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(row, other, rtol=1e-12, atol=1e-12)


def test_the_learning_rate_has_to_be_known_where_it_is_asked_for() -> None:
    for run, now in ((windows(rates(1.0), None), PEAK), (windows(rates(1.0)), None)):
        with pytest.raises(MethodError, match="the rates of the windows at hand are not known"):
            timing_of(run, 60, "learning_rate", now)


def test_at_a_rate_of_0_nothing_is_jumped_and_nothing_is_counted() -> None:
    now = timing_of(windows(rates(1.0), rates(0.5)), 60, "auto", 0.0)
    assert now.refusal == "the learning rate is 0 now, so a jump of 60 steps would move nothing"
    still = timing_of(windows(rates(1.0), rates(0.0)), 60, "auto", PEAK)
    assert still.refusal == "the learning rate was 0 throughout the window: nothing was trained"
    for refused in (now, still):
        found = judge_jump(
            refused.windows, 60, "two_point", gram_of(list(refused.windows), [1.0, 1.0]), timing=refused
        )
        assert (found.jump, found.reason) == (False, refused.refusal)
    first, second, third = windows(rates(1.0), rates(0.0), rates(0.5))
    left_out = timing_of([first, second, third], 60, "learning_rate", PEAK / 2)
    assert left_out.windows == (first, third)
    assert left_out.times == pytest.approx((0.0, 20.0, 30.0))
    # the whole run at 0: by steps, as it is no change
    nothing = timing_of(windows(rates(0.0)), 60, "auto", 0.0)
    assert nothing.clock is STEPS


def test_a_straight_run_under_a_falling_rate_is_straight_along_it_alone() -> None:
    """The second window went half as far, at half the rate."""
    run = windows(rates(1.0), rates(0.5))
    gram = gram_of(run, [1.0, 0.5])
    by_steps = judge_jump(run, 20, "two_point", gram)
    assert by_steps.backtest_error == pytest.approx(1.0)
    timing = timing_of(run, 20, "auto", 0.5 * PEAK)
    by_rate = judge_jump(run, 20, "two_point", gram, timing=timing)
    assert by_rate.backtest_error == pytest.approx(0.0, abs=1e-7)
    assert by_rate.expected_relative_error == pytest.approx(0.0, abs=1e-7)
    assert by_rate.jump


def test_a_jump_is_as_far_as_its_rate_makes_it() -> None:
    """A thousand steps are beyond what 40 rehearsed at the full rate, and not at a hundredth of it."""
    run = windows(rates(1.0), rates(0.9))
    gram = gram_of(run, [1.0, 0.9])
    for rate, jump in ((1.0, False), (0.01, True)):
        timing = timing_of(run, 1000, "auto", rate * PEAK)
        found = judge_jump(run, 1000, "two_point", gram, timing=timing)
        assert found.jump is jump
        if not jump:
            assert found.reason.startswith(
                "n = 1000 is 26.3 times the 38 full-rate steps of training at hand"
            )


@pytest.mark.parametrize("rule", ["two_point", "anchored", "calibrated"])
def test_no_rule_sees_a_unit_in_constant_rates(rule: str) -> None:
    """All at half the peak of the run: the coefficients of steps, to the bit."""
    run = windows(*[rates(0.5)] * 4)
    values = np.random.default_rng(3).normal(size=(1, 8, 30)).cumsum(axis=1)
    gram = values @ np.swapaxes(values, 1, 2)
    by_steps = jump_coefficients(run, 20, rule, gram)
    timing = timing_of(run, 20, "learning_rate", PEAK / 2, PEAK)
    assert timing.clock.name == "learning_rate"
    np.testing.assert_array_equal(jump_coefficients(run, 20, rule, gram, timing), by_steps)
