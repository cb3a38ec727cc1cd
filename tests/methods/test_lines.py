"""The bare functions: answers worked out by hand, and what holds for every trajectory."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubextrap.errors import MethodError
from hubextrap.methods import late_lines, least_squares, persistence, sum_to_one, two_point

LINES = [two_point, least_squares, late_lines]


def irregular(minimum: int) -> st.SearchStrategy[list[int]]:
    """Increasing steps with gaps from 1 to 500."""
    gaps = st.lists(st.integers(1, 500), min_size=minimum - 1, max_size=9)
    return st.tuples(st.integers(0, 10_000), gaps).map(lambda pair: list(accumulate([pair[0], *pair[1]])))


trajectories = irregular(2)
horizons = st.integers(0, 5_000)


def test_persistence_is_the_last_checkpoint() -> None:
    assert persistence([0, 40, 100], 400).tolist() == [0, 0, 1]


def test_two_point_by_hand() -> None:
    # (400 − 0)/(200 − 0) = 2, (400 − 100)/(200 − 100) = 3
    assert two_point([0, 100, 200], 400).tolist() == [-1, 0, 2]
    assert two_point([0, 100, 200], 400, base_step=100).tolist() == [0, -2, 3]
    assert two_point([0, 100, 200], 400, base_step=0).tolist() == [-1, 0, 2]


def test_two_point_as_the_paper_uses_it() -> None:
    base, last = two_point([0, 1400], 2000)
    assert last == pytest.approx(10 / 7, abs=1e-15)
    assert base == pytest.approx(-3 / 7, abs=1e-15)


def test_least_squares_by_hand() -> None:
    # mean step 1, Σ(s−1)² = 2: c_k = 1/3 + 3·(s_k−1)/2 at s* = 4
    assert least_squares([0, 1, 2], 4) == pytest.approx([1 / 3 - 3 / 2, 1 / 3, 1 / 3 + 3 / 2], abs=1e-15)
    # irregular: mean 10/3, offsets −10/3, −7/3, 17/3, Σ of squares 438/9; s* − mean = 20/3
    expected = [1 / 3 + 20 / 3 * offset / (438 / 9) for offset in (-10 / 3, -7 / 3, 17 / 3)]
    assert least_squares([0, 1, 9], 10) == pytest.approx(expected, abs=1e-15)


def test_late_lines_by_hand() -> None:
    # over 2, 3, 4: slopes (-2, -1, 3)/5 a step; over 3, 4: (-1, 1); .55 and .25 of two steps of each
    expected = [0, 0, -2 * 0.55 * 2 / 5, -2 * (0.55 / 5 + 0.25), 1 + 2 * (0.55 * 3 / 5 + 0.25)]
    assert late_lines([0, 1, 2, 3, 4], 6) == pytest.approx(expected, abs=1e-15)
    assert late_lines([0, 1], 3) == pytest.approx([-1.6, 2.6], abs=1e-15)  # both lines are this one
    assert late_lines([0, 1, 2], 2).tolist() == [0, 0, 1]


def test_least_squares_through_last_by_hand() -> None:
    # offsets −2, −1, 0 from the last step, Σ of squares 5, horizon 2: −4/5, −2/5, and the last takes the rest
    assert least_squares([0, 1, 2], 4, through_last=True) == pytest.approx([-0.8, -0.4, 2.2], abs=1e-15)


def test_window_leaves_the_rest_out() -> None:
    result = least_squares([0, 7, 100, 110, 120], 150, window=3)
    assert result[:2].tolist() == [0, 0]
    assert result[2:].tolist() == least_squares([100, 110, 120], 150).tolist()


@settings(deadline=None)
@given(trajectories, horizons, st.booleans())
def test_least_squares_equals_polyfit(steps: list[int], horizon: int, through_last: bool) -> None:
    weights = np.random.default_rng(0).normal(size=(len(steps), 5))
    target = steps[-1] + horizon
    predicted = least_squares(steps, target, through_last=through_last) @ weights
    times = (np.asarray(steps) - steps[-1]) / (steps[-1] - steps[0])
    if through_last:
        slope = np.linalg.lstsq(times[:, None], weights - weights[-1], rcond=None)[0]
        expected = weights[-1] + slope[0] * horizon / (steps[-1] - steps[0])
    else:
        slope, intercept = np.polyfit(times, weights, 1)
        expected = intercept + slope * horizon / (steps[-1] - steps[0])
    scale = max(1.0, horizon / (steps[-1] - steps[0])) * len(steps)
    assert predicted == pytest.approx(expected, abs=1e-10 * scale)


@settings(deadline=None)
@given(trajectories, horizons)
def test_least_squares_equals_the_pseudoinverse(steps: list[int], horizon: int) -> None:
    start = steps[0]  # the formula itself is badly conditioned far from 0
    design = np.stack([np.ones(len(steps)), np.asarray(steps, float) - start])
    target = steps[-1] + horizon
    expected = np.array([1.0, target - start]) @ np.linalg.pinv(design).T
    assert least_squares(steps, target) == pytest.approx(
        expected, rel=1e-7, abs=1e-7 * np.abs(expected).max()
    )


@pytest.mark.parametrize("method", [two_point, least_squares])
@settings(deadline=None)
@given(steps=trajectories, horizon=horizons, slope=st.floats(-10, 10), start=st.floats(-10, 10))
def test_exact_on_straight_lines(method, steps: list[int], horizon: int, slope: float, start: float) -> None:  # type: ignore[no-untyped-def]
    def line(step: float) -> float:
        return start + slope * (step - steps[0]) / (steps[-1] - steps[0])

    target = steps[-1] + horizon
    values = np.array([line(step) for step in steps])
    tolerance = 1e-12 * (1 + abs(line(target)) + abs(slope) + abs(start)) * (1 + horizon)
    assert method(steps, target) @ values == pytest.approx(line(target), abs=tolerance)


@pytest.mark.parametrize("method", LINES)
@settings(deadline=None)
@given(steps=trajectories, horizon=horizons, shift=st.integers(0, 10_000), factor=st.integers(1, 50))
def test_shifting_and_scaling_the_steps_changes_nothing(  # type: ignore[no-untyped-def]
    method, steps: list[int], horizon: int, shift: int, factor: int
) -> None:
    target = steps[-1] + horizon
    moved = method([factor * step + shift for step in steps], factor * target + shift)
    assert moved == pytest.approx(method(steps, target), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(trajectories, horizons, st.data())
def test_coefficients_sum_to_one(steps: list[int], horizon: int, data: st.DataObject) -> None:
    target = steps[-1] + horizon
    window = data.draw(st.integers(2, len(steps)))
    base = data.draw(st.sampled_from(steps[:-1]))
    for result in (
        persistence(steps, target),
        two_point(steps, target, base_step=base),
        least_squares(steps, target, window=window),
        least_squares(steps, target, window=window, through_last=True),
    ):
        assert result.dtype == np.float64
        assert math.fsum(result) == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None)
@given(trajectories, st.data())
def test_two_point_at_the_last_step_is_the_last_checkpoint(steps: list[int], data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(steps[:-1]))
    result = two_point(steps, steps[-1], base_step=base)
    assert result.tolist() == persistence(steps, steps[-1]).tolist()


@settings(deadline=None)
@given(irregular(2).filter(lambda steps: len(steps) == 2), horizons, st.booleans())
def test_least_squares_on_two_points_is_two_point(steps: list[int], horizon: int, through_last: bool) -> None:
    target = steps[-1] + horizon
    result = least_squares(steps, target, through_last=through_last)
    assert result == pytest.approx(two_point(steps, target), rel=1e-12, abs=1e-12)


def test_a_line_through_last_passes_through_it() -> None:
    assert least_squares([0, 3, 50, 64], 64, through_last=True).tolist() == [0, 0, 0, 1]


def test_sum_to_one_takes_up_rounding_in_the_last() -> None:
    assert math.fsum(sum_to_one(np.array([0.1, 0.2, 0.3, 0.39999]))) == 1.0


@pytest.mark.parametrize("base_step", [50, 200, 300])
def test_two_point_lists_the_steps_to_choose_from(base_step: int) -> None:
    with pytest.raises(MethodError) as error:
        two_point([0, 100, 200], 400, base_step=base_step)
    assert str(error.value) == (
        f"base_step {base_step} is not an observed step before the last one (200); choose one of 0, 100"
    )


@pytest.mark.parametrize("method", LINES)
def test_one_checkpoint_is_no_line(method) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MethodError, match="needs two checkpoints, but only step 100"):
        method([100], 200)


@pytest.mark.parametrize("window", [-1, 0, 1, 4])
def test_window_has_to_fit(window: int) -> None:
    with pytest.raises(MethodError, match=f"window {window} does not fit.* from 2 to 3"):
        least_squares([0, 100, 200], 400, window=window)
