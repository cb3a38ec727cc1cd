"""The coefficients of a jump, held against the formulas computed on the weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError, StepError
from hubextrap.methods import coefficients
from hubextrap.regrounding import RULES, Clocks, Window, jump_coefficients, snapshot_steps
from hubextrap.regrounding.jumps import joined_gram, joined_path, joined_steps

ONE = [Window(0, 20)]
THREE = [Window(0, 20), Window(80, 100), Window(100, 120)]  # a jump of 60, then none


def weights(windows: list[Window], tensors: int = 3, size: int = 50) -> NDArray[np.float64]:
    """(N, K, size): tensors that drift and wander."""
    random = np.random.default_rng(7)
    steps = np.array(snapshot_steps(windows), dtype=np.float64)
    drift = random.normal(size=(tensors, 1, size)) * steps[:, None] / 20
    return drift + random.normal(size=(tensors, len(steps), size)).cumsum(axis=1)


def grams(values: NDArray[np.float64]) -> NDArray[np.float64]:
    deltas = values - values[:, :1]
    return deltas @ np.swapaxes(deltas, 1, 2)


def motions(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """What training did in each window of THREE: (N, size)."""
    return [values[:, 1] - values[:, 0], values[:, 3] - values[:, 2], values[:, 4] - values[:, 3]]


def test_snapshots_of_a_skipped_jump_are_shared() -> None:
    assert snapshot_steps(THREE) == (0, 20, 80, 100, 120)
    assert joined_steps(THREE) == (0, 20, 40, 60)


@pytest.mark.parametrize("n", [0, 1, 60, 120])
def test_two_point_is_the_windows_own_line(n: int) -> None:
    values = weights(THREE)
    (row,) = jump_coefficients(THREE, n, "two_point")
    expected = values[:, 4] + n / 20 * (values[:, 4] - values[:, 3])
    np.testing.assert_allclose(np.einsum("k,nks->ns", row, values), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(jump_coefficients(ONE, n, "two_point"), [[-n / 20, 1 + n / 20]], atol=1e-15)


def test_anchored_is_least_squares_through_the_last_snapshot_over_what_training_did() -> None:
    values = weights(THREE)
    first, second, third = motions(values)
    # the slope that fits −60·v ≈ −(d1+d2+d3), −40·v ≈ −(d2+d3), −20·v ≈ −d3 best
    slope = (60 * (first + second + third) + 40 * (second + third) + 20 * third) / (60**2 + 40**2 + 20**2)
    (row,) = jump_coefficients(THREE, 60, "anchored")
    got = np.einsum("k,nks->ns", row, values)
    np.testing.assert_allclose(got, values[:, 4] + 60 * slope, rtol=1e-12, atol=1e-12)


def test_calibrated_is_the_method_on_the_joined_path_tensor_by_tensor() -> None:
    values = weights(THREE)
    path = np.stack([values[:, 4] - sum(motions(values)[index:]) for index in range(3)] + [values[:, 4]], 1)
    rows = jump_coefficients(THREE, 60, "calibrated", grams(values))
    assert rows.shape == (3, 5)
    for row, tensor, points, gram in zip(rows, values, path, grams(path), strict=True):
        expected = coefficients("calibrated", [0, 20, 40, 60], 120, gram_matrix=gram) @ points
        np.testing.assert_allclose(row @ tensor, expected, rtol=1e-9, atol=1e-9)


def test_the_joined_path_holds_training_and_no_jump() -> None:
    values = weights(THREE)
    path = np.einsum("pk,nks->nps", joined_path(THREE), values)
    for index, motion in enumerate(motions(values)):
        np.testing.assert_allclose(path[:, index + 1] - path[:, index], motion, atol=1e-12)
    np.testing.assert_allclose(path[:, -1], values[:, -1])
    np.testing.assert_allclose(joined_gram(THREE, grams(values)), grams(path), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_coefficients_sum_to_one_and_no_jump_stays(rule: str) -> None:
    gram = grams(weights(THREE))
    for row in jump_coefficients(THREE, 60, rule, gram):
        assert abs(row.sum() - 1.0) < 1e-14
    for row in jump_coefficients(THREE, 0, rule, gram):
        np.testing.assert_array_equal(row, [0, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("windows", "n", "rule", "error", "said"),
    [
        (ONE, 5, "linear", MethodError, "rule 'linear': choose one of"),
        (ONE, -1, "two_point", MethodError, "n -1: "),
        (ONE, 5, "calibrated", MethodError, "needs the Gram matrix"),
        ([], 5, "two_point", StepError, "no windows"),
        ([Window(5, 5)], 5, "two_point", StepError, "holds no training"),
        ([Window(0, 9), Window(8, 12)], 5, "two_point", StepError, "from step 8 begins before"),
    ],
)
def test_what_cannot_be_served_is_said(
    windows: list[Window], n: int, rule: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        jump_coefficients(windows, n, rule)


def test_calibrated_needs_a_past() -> None:
    with pytest.raises(MethodError, match="needs three checkpoints, but there are only 2"):
        jump_coefficients(ONE, 20, "calibrated", grams(weights(ONE)))


def test_clocks_count_what_was_trained_and_what_was_jumped() -> None:
    clocks = Clocks().trained(20).jumped(60).trained(20)
    assert (clocks.rl_steps, clocks.extrapolated_steps, clocks.represented_steps) == (40, 60, 100)
