"""The methods' thresholds, at their documented values and on both sides; figures are literal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError, StepError
from hubextrap.methods import (
    average,
    calibrated,
    coefficients,
    denoised_gram,
    ema,
    leading_subspace,
    longest_horizon,
    low_rank,
    on_grid,
    register_method,
    registry,
    rehearse,
    rounding_share,
    squared_distances,
)
from hubextrap.methods.rehearsal import most_rehearsals

STEPS = [0, 40, 80, 100, 120, 160, 200]


@pytest.fixture
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    registry.find_method.cache_clear()
    yield
    registry.find_method.cache_clear()


def noisy_line(share: float, count: int = 8) -> NDArray[np.float64]:
    """(K, K): a straight run with white noise, of which `rounding_share` is just ``share``."""
    times = np.arange(count, dtype=np.float64)
    return np.outer(times, times) * 2 * (1 - share) / share + np.eye(count)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.6])
def test_methods_fit_to_the_signal_from_a_share_of_rounding_of_a_tenth_to_three_tenths(share: float) -> None:
    gram = noisy_line(share)
    assert rounding_share(gram) == pytest.approx(share, rel=1e-9)
    passed = min(max((share - 0.1) / 0.2, 0.0), 1.0)
    expected = (1 - passed) * gram + passed * leading_subspace(gram)
    assert denoised_gram(gram) == pytest.approx(expected, rel=1e-9, abs=1e-9 * gram.max())


@pytest.mark.parametrize("count", [4, 5, 9])
def test_the_share_of_rounding_is_twice_the_least_variation_by_the_squared_way(count: int) -> None:
    """Of the checkpoints around their mean, whatever they refer to; the least along K − 1 directions."""
    run = np.cumsum(np.random.default_rng(count).normal(size=(count, 30)), axis=0)
    around = run - run.mean(axis=0)
    least = np.linalg.svd(around, compute_uv=False)[count - 2] ** 2
    way = np.mean(np.sum(np.diff(run, axis=0) ** 2, axis=1))
    for reference in (run[0], run[-1], 0.0):
        deltas = run - reference
        assert rounding_share(deltas @ deltas.T) == pytest.approx(2 * least / way)


def test_up_to_a_tenth_a_gram_matrix_stays_as_it_is() -> None:
    gram = noisy_line(0.0999)
    assert denoised_gram(gram) is gram
    assert not np.array_equal(denoised_gram(noisy_line(0.1001)), noisy_line(0.1001))


def test_three_checkpoints_have_no_share_of_rounding_and_four_have() -> None:
    assert rounding_share(np.eye(3)) == 0.0
    assert rounding_share(1e-9 * np.eye(4)) == pytest.approx(1.0)
    assert rounding_share(np.stack([np.eye(3)] * 2)).tolist() == [0.0, 0.0]


def test_the_signal_is_the_two_leading_eigenvectors() -> None:
    assert np.diagonal(leading_subspace(np.diag([4.0, 1.0, 3.0, 2.0]))).tolist() == pytest.approx(
        [4.0, 0.0, 3.0, 0.0]
    )
    assert leading_subspace(np.diag([-1.0, -2.0, 3.0])) == pytest.approx(np.diag([0.0, 0.0, 3.0]))


def test_distances_are_those_of_the_weights_and_not_below_0() -> None:
    run = np.random.default_rng(0).normal(size=(5, 3)) * 1e-6
    expected = [[np.sum((one - other) ** 2) for other in run] for one in run]
    assert squared_distances(run @ run.T) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-25)
    assert squared_distances(np.array([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]])).tolist() == [[0, 0], [0, 0]]


def test_many_gram_matrices_at_once_are_each_as_if_alone() -> None:
    grams = np.stack([noisy_line(share) for share in (0.05, 0.15, 0.25, 0.35, 0.6, 0.1)]).reshape(2, 3, 8, 8)
    for function in (denoised_gram, leading_subspace, rounding_share, squared_distances):
        found = function(grams)  # type: ignore[operator]
        assert found.shape[:2] == (2, 3)
        for place in np.ndindex(2, 3):
            assert found[place] == pytest.approx(function(grams[place]))  # type: ignore[operator]


def pairs(steps: list[int], target: float) -> dict[tuple[int, int], float]:
    found = rehearse(steps, target)
    keys = zip(found.origins.tolist(), found.targets.tolist(), strict=True)
    return dict(zip(keys, found.weights.tolist(), strict=True))


@pytest.mark.parametrize("first", [0, 70])
@pytest.mark.parametrize("target", [210.0, 250.0, 320.0, 500.0, 900.0])
def test_a_rehearsal_weighs_by_its_horizon_and_by_how_late_it_is(target: float, first: int) -> None:
    """exp(−d²/2)·s_j/s_last with d = ln(horizon/the prediction's)/0.4, up to d = 3; steps from the first."""
    wanted = (target - 200) / 200
    expected = {}
    for j in range(1, len(STEPS)):
        for k in range(j + 1, len(STEPS)):
            d = math.log((STEPS[k] - STEPS[j]) / STEPS[j] / wanted) / 0.4
            if abs(d) <= 3:
                expected[j, k] = math.exp(-(d**2) / 2) * STEPS[j] / 200
    assert pairs([first + step for step in STEPS], first + target) == pytest.approx(expected)


@pytest.mark.parametrize("first", [0, 70])
def test_no_target_has_more_rehearsals_than_are_counted_on(first: int) -> None:
    """What memory is planned by: the most, of whatever target, and that many for some target."""
    steps = [first + step for step in STEPS]
    targets = first + 200 * (1 + np.exp(np.linspace(-3, 3, 2000)))
    assert most_rehearsals(steps) == max(len(rehearse(steps, target)) for target in targets)
    assert most_rehearsals(steps[:2]) == 0


def test_the_mean_over_rehearsals_is_weighted_and_leaves_out_what_is_not_known() -> None:
    found = rehearse([0, 100, 200, 400], 600)
    values = np.arange(len(found), dtype=np.float64) ** 2
    assert found.mean(values) == pytest.approx(np.average(values, weights=found.weights))
    values[0] = np.nan
    assert found.mean(values) == pytest.approx(np.average(values[1:], weights=found.weights[1:]))
    assert math.isnan(found.mean(np.full(len(found), np.nan)))


@pytest.mark.parametrize("factor", [math.exp(1.2), math.exp(-1.2)])
def test_a_horizon_three_deviations_off_counts_and_none_beyond(factor: float) -> None:
    """The only rehearsal is 100 → 200, a horizon of 1: the prediction's may be e^1.2 = 3.32 times off."""
    steps, inside, outside = [0, 100, 200], factor ** (1 - 1e-9), factor ** (1 + 1e-9)
    assert pairs(steps, 200 + 200 * inside) == pytest.approx({(1, 2): 0.5 * math.exp(-4.5)}, rel=1e-6)
    assert pairs(steps, 200 + 200 * outside) == {}


def test_rehearsing_needs_three_checkpoints_and_a_target_behind_the_last() -> None:
    assert pairs([0, 100], 150) == {}
    assert pairs([0, 100, 200], 200) == {}
    assert len(pairs([0, 100, 200], 300)) == 1
    assert longest_horizon([0, 100]) == 0.0
    assert longest_horizon([0, 100, 400]) == 3.0
    assert longest_horizon([50, 100, 400]) == 6.0


def by_hand(steps: list[int], target: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """`calibrated` as docs/backtest.md has it, in plain loops."""
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    count = len(steps)

    def line(last: int, window: float) -> NDArray[np.float64]:
        """The slope of the line through ``last`` over what lies behind that share of the way."""
        within = [k for k in range(last) if times[k] >= window * times[last]] or [last - 1]
        result = np.zeros(count)
        size = sum((times[k] - times[last]) ** 2 for k in within)
        for k in within:
            result[k] += (times[k] - times[last]) / size
            result[last] -= (times[k] - times[last]) / size
        return result

    left, right = np.zeros((3, 3)), np.zeros(3)
    for (origin, later), weight in pairs(steps, target).items():
        way = times[later] - times[origin]
        moved = np.stack([way * line(origin, window) for window in (0.0, 0.5, 0.75)])
        motion = np.zeros(count)
        motion[later], motion[origin] = 1.0, -1.0
        size = motion @ gram @ motion + np.mean([row @ gram @ row for row in moved])
        left += weight / size * moved @ gram @ moved.T
        right += weight / size * moved @ gram @ motion
    beta = np.linalg.solve(left + 0.2 * np.trace(left) / 3 * np.eye(3), right)
    lines = np.stack([line(count - 1, window) for window in (0.0, 0.5, 0.75)])
    return np.asarray((target - steps[-1]) * beta @ lines)


@pytest.mark.parametrize("first", [0, 30])
@pytest.mark.parametrize("target", [230.0, 300.0, 420.0])
def test_calibrated_by_hand(target: float, first: int) -> None:
    """Three windows, a ridge of 0.2 of the mean diagonal, relative errors."""
    steps = [first + step for step in STEPS]
    generator = np.random.default_rng(4)
    run = np.cumsum(generator.normal(size=(7, 3)), axis=0) + np.outer(STEPS, [0.02, 0.03, -0.01])
    gram = (run - run[0]) @ (run - run[0]).T
    assert rounding_share(gram) < 0.1
    expected = by_hand(steps, first + target, gram)
    assert calibrated(steps, first + target, gram) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def returning(values: list[float]) -> Callable[..., NDArray[np.float64]]:
    return lambda steps, target_step: np.array(values)


@pytest.mark.usefixtures("_own_table")
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("beyond", [-0.5, 0.5, 100.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_methods_sum_may_be_off_by_rounding_alone(count: int, beyond: float, sign: float) -> None:
    """1e-12 a coefficient, of the largest or of 1."""
    allowed = 1e-12 * max(1.0, 1.0 + beyond) * count
    for share, accepted in ((0.7, True), (1.4, False)):
        off = sign * share * allowed
        register_method(f"off{share}", returning([-beyond, *[0.0] * (count - 2), 1.0 + beyond + off]))
        if accepted:
            found = coefficients(f"off{share}", STEPS[:count], 300)
            assert math.fsum(found) == pytest.approx(1.0, abs=1e-15)
        else:
            with pytest.raises(MethodError, match="coefficients that sum to"):
                coefficients(f"off{share}", STEPS[:count], 300)


def test_a_step_is_at_most_2_to_the_53() -> None:
    assert coefficients("persistence", [0, 100], 2**53).tolist() == [0, 1]
    assert coefficients("persistence", [0, 2**53], 2**53).tolist() == [0, 1]
    for steps, target in (([0, 100], 2**53 + 2), ([0, 2**53 + 2], 2**53 + 2)):
        with pytest.raises(StepError, match="at most 9007199254740992"):
            coefficients("persistence", steps, target)


def test_the_last_step_itself_may_be_the_target_and_none_before() -> None:
    assert coefficients("two_point", [0, 100], 100).tolist() == [0, 1]
    with pytest.raises(StepError, match="before the last observed step 100"):
        coefficients("two_point", [0, 100], math.nextafter(100, 0))
    with pytest.raises(StepError, match="no step may come twice"):
        coefficients("two_point", [0, 100, 100], 300)
    assert coefficients("two_point", [99, 100], 101).tolist() == [-1, 2]


def test_fitted_coefficients_lie_on_a_grid_of_2_to_the_minus_20() -> None:
    generator = np.random.default_rng(0)
    run = np.cumsum(generator.normal(size=(7, 5)), axis=0)
    found = coefficients("calibrated", STEPS, 300, gram_matrix=(run - run[0]) @ (run - run[0]).T)
    assert np.array_equal(found[:-1] * 2**20, np.rint(found[:-1] * 2**20))
    assert not np.array_equal(found * 2**19, np.rint(found * 2**19))
    assert on_grid(np.array([0.49, 0.51, -0.51, 3.0]) * 2.0**-20).tolist() == [
        0,
        2**-20,
        -(2**-20),
        3 * 2**-20,
    ]


@pytest.mark.parametrize(
    ("share", "kept"), [(0.5e-12, False), (0.9e-12, False), (1.1e-12, True), (2e-12, True)]
)
def test_a_direction_a_million_million_times_weaker_than_the_first_is_rounding(
    share: float, kept: bool
) -> None:
    """Two orthogonal deltas: the second one's eigenvalue is this share of the first one's."""
    gram = np.diag([0.0, share, 1.0])
    found = low_rank([0, 10, 20], 40, gram_matrix=gram, rank=2)
    # the line through steps 10 and 20, read at 40, is −2 and 3
    assert found.tolist() == pytest.approx([0.0 if kept else -2.0, -2.0 if kept else 0.0, 3.0])


def test_where_nothing_moved_there_is_no_direction() -> None:
    assert low_rank([0, 10, 20], 40, gram_matrix=np.zeros((3, 3)), rank=2).tolist() == [1.0, 0.0, 0.0]
    assert low_rank([0, 10, 20], 40, gram_matrix=-np.eye(3), rank=2).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("rank", [1, 2])
def test_ranks_from_1_to_one_less_than_the_checkpoints(rank: int) -> None:
    assert len(low_rank([0, 10, 20], 40, gram_matrix=np.eye(3), rank=rank)) == 3
    for wrong in (0, 3):
        with pytest.raises(MethodError, match="give a rank from 1 to 2"):
            low_rank([0, 10, 20], 40, gram_matrix=np.eye(3), rank=wrong)


def test_averages_at_the_ends_of_their_ranges() -> None:
    assert average([0, 1, 2], 9, last=1).tolist() == [0, 0, 1]
    assert average([0, 1, 2], 9, last=3).tolist() == pytest.approx([1 / 3] * 3)
    for wrong in (0, 4):
        with pytest.raises(MethodError, match="a count from 1 to 3"):
            average([0, 1, 2], 9, last=wrong)
    assert ema([0, 1], 9).tolist() == pytest.approx([0.9, 0.1])
    assert ema([0, 1], 9, decay=0.999).tolist() == pytest.approx([0.999, 0.001])
    with pytest.raises(MethodError, match="decay -1e-09"):
        ema([0, 1], 9, decay=-1e-9)


@pytest.mark.parametrize("window", [2, 3])
def test_windows_from_2_to_all_checkpoints(window: int) -> None:
    assert np.count_nonzero(coefficients("least_squares", [0, 10, 25], 40, {"window": window})) == window
    for wrong in (1, 4):
        with pytest.raises(MethodError, match="a window from 2 to 3"):
            coefficients("least_squares", [0, 10, 25], 40, {"window": wrong})


def test_the_last_half_begins_at_the_middle_itself() -> None:
    """Of 100 … 500 the middle is 300."""
    assert coefficients("least_squares", [100, 299, 300, 500], 600, {"window": "half"})[:2].tolist() == [0, 0]
    found = coefficients("least_squares", [100, 301, 400, 500], 600, {"window": "half"})
    assert np.flatnonzero(found).tolist() == [1, 2, 3]
