"""Methods that read the Gram matrix: known answers, what holds for every run, nothing from the future."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubextrap.errors import MethodError
from hubextrap.methods import (
    average,
    coefficients,
    ema,
    leading_subspace,
    least_squares,
    low_rank,
    persistence,
    rehearse,
    rounding_share,
    two_point,
)
from hubextrap.methods.checking import needs_gram_matrix

STEPS = [0, 40, 80, 100, 120, 160, 200]
FITTED: list[tuple[str, dict[str, object], object]] = [
    ("calibrated", {}, 1.0),
    ("low_rank", {"rank": 2}, 1.0),
    ("low_rank", {}, "auto"),
    ("two_point", {"base_step": "auto"}, 1.0),
    ("two_point", {}, "auto"),
    ("least_squares", {"window": "half", "through_last": True}, "auto"),
]
runs = st.tuples(
    st.lists(st.integers(1, 300), min_size=3, max_size=11).map(lambda gaps: [0, *accumulate(gaps)]),
    st.integers(0, 2**32 - 1),
)


def drift(steps: list[int], seed: int = 0, size: int = 40, noise: float = 0.3) -> NDArray[np.float64]:
    """(K, size) weights that drift along a line and wander beside it."""
    generator = np.random.default_rng(seed)
    times = np.asarray(steps, dtype=np.float64)[:, None] / steps[-1]
    wander = np.cumsum(generator.normal(size=(len(steps), size)), axis=0) / len(steps) ** 0.5
    result: NDArray[np.float64] = times * generator.normal(size=size) + noise * wander
    return result


def gram_of(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    deltas = weights - weights[0]
    return np.asarray(deltas @ deltas.T)


def test_average_and_ema_by_hand() -> None:
    assert average([0, 1, 2, 3], 9, last=2).tolist() == [0, 0, 0.5, 0.5]
    assert average([0, 1], 9).tolist() == [0.5, 0.5]
    assert ema([0, 1, 2], 9, decay=0.5).tolist() == [0.25, 0.25, 0.5]
    assert ema([0, 1, 2], 9, decay=0.0).tolist() == [0, 0, 1]
    with pytest.raises(MethodError, match="last 3: give a count from 1 to 2"):
        average([0, 1], 9, last=3)
    with pytest.raises(MethodError, match=r"decay 1.0: give a number from 0"):
        ema([0, 1], 9, decay=1.0)


def relex(weights: NDArray[np.float64], target: float, rank: int) -> NDArray[np.float64]:
    """As published: SVD of the deltas to the base, a line fitted to the list index of each component."""
    deltas = weights[1:] - weights[0]
    left, values, right = np.linalg.svd(deltas, full_matrices=False)
    temporal = left[:, :rank] * values[:rank]
    index = np.arange(len(deltas))
    lines = [np.polyfit(index, temporal[:, component], 1) for component in range(rank)]
    predicted = np.array([np.polyval(line, target) for line in lines])
    return np.asarray(weights[0] + predicted @ right[:rank])


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_low_rank_equals_the_explicit_svd_where_steps_are_equally_spaced(rank: int) -> None:
    steps = [0, 20, 40, 60, 80, 100, 120]
    weights = drift(steps)
    found = low_rank(steps, 200, gram_matrix=gram_of(weights), rank=rank) @ weights
    # steps 20 … 120 are indices 0 … 5, so step 200 is index 9
    assert found == pytest.approx(relex(weights, 9, rank), rel=1e-9, abs=1e-9)


def test_low_rank_of_full_rank_is_least_squares_without_the_base() -> None:
    weights = drift(STEPS)
    found = low_rank(STEPS, 300, gram_matrix=gram_of(weights), rank=6) @ weights
    assert found == pytest.approx(least_squares(STEPS[1:], 300) @ weights[1:], abs=1e-10)


def test_low_rank_does_not_depend_on_what_the_deltas_refer_to() -> None:
    weights = drift(STEPS)
    shifted = weights - weights[3]
    expected = low_rank(STEPS, 300, gram_matrix=gram_of(weights))
    assert low_rank(STEPS, 300, gram_matrix=shifted @ shifted.T) == pytest.approx(expected, abs=1e-10)


def test_low_rank_says_what_it_lacks() -> None:
    with pytest.raises(MethodError, match="low_rank needs three checkpoints"):
        low_rank([0, 10], 20, gram_matrix=np.eye(2))
    with pytest.raises(MethodError, match=r"rank 7: give a rank from 1 to 6"):
        low_rank(STEPS, 300, gram_matrix=np.eye(7), rank=7)


@pytest.mark.parametrize(("method", "parameters", "damping"), FITTED)
def test_what_did_not_move_stays(method: str, parameters: dict[str, object], damping: object) -> None:
    result = coefficients(
        method,
        STEPS,
        300,
        parameters,
        damping=damping,
        gram_matrix=np.zeros((7, 7)),  # type: ignore[arg-type]
    )
    weights = np.tile([0.1, -3.7, 1e-8], (7, 1))
    assert result @ weights == pytest.approx(weights[0], rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(runs, st.sampled_from(FITTED), st.floats(1.1, 2.0))
def test_coefficients_sum_to_one_whatever_the_run(
    run: tuple[list[int], int], fitted: tuple[str, dict[str, object], object], reach: float
) -> None:
    steps, seed = run
    method, parameters, damping = fitted
    try:
        result = coefficients(
            method,
            steps,
            steps[-1] * reach,
            parameters,
            damping=damping,  # type: ignore[arg-type]
            gram_matrix=gram_of(drift(steps, seed)),
        )
    except MethodError as error:
        assert "calibrated cannot predict" in str(error) or "auto cannot choose" in str(error)  # noqa: PT017
        return
    assert np.isfinite(result).all()
    assert result.sum() == pytest.approx(1.0, abs=1e-9 * max(1.0, np.abs(result).max()))


@settings(deadline=None, max_examples=40)
@given(runs, st.floats(1.1, 2.0))
def test_on_a_straight_run_all_lines_are_right(run: tuple[list[int], int], reach: float) -> None:
    steps, seed = run
    slope = np.random.default_rng(seed).normal(size=12)
    weights = np.asarray(steps, dtype=np.float64)[:, None] * slope
    target = steps[-1] * reach
    gram = gram_of(weights)
    real = (target - steps[-1]) * slope
    try:
        found = {
            name: coefficients(name, steps, target, parameters, damping=damping, gram_matrix=gram) @ weights
            for name, parameters, damping in FITTED[1:]  # type: ignore[arg-type]
        }
        moved = coefficients("calibrated", steps, target, gram_matrix=gram) @ weights - weights[-1]
    except MethodError:
        return
    grid = 2.0**-20 * np.abs(weights).sum()  # what coefficients on the grid may be beside
    for predicted in found.values():
        assert predicted == pytest.approx(target * slope, rel=1e-6, abs=1e-9 + grid)
    # three equal lines under a ridge penalty of 0.2 each: 3/(3 + 0.2) of the way, and on the line
    assert moved == pytest.approx(real * 3 / 3.2, rel=1e-6, abs=1e-9 + grid)


@settings(deadline=None, max_examples=30)
@given(runs, st.sampled_from(FITTED), st.integers(0, 2**32 - 1))
def test_only_what_was_seen_counts(
    run: tuple[list[int], int], fitted: tuple[str, dict[str, object], object], other: int
) -> None:
    """Two runs that are one up to the last step and part behind it get the same coefficients."""
    steps, seed = run
    method, parameters, damping = fitted
    last = len(steps) - 1
    weights = drift(steps, seed)
    changed = weights.copy()
    changed[last] = drift(steps, other)[last] + 5.0
    results = []
    for version in (weights, changed):
        try:
            results.append(
                coefficients(
                    method,
                    steps[:last],
                    steps[last],
                    parameters,
                    damping=damping,  # type: ignore[arg-type]
                    gram_matrix=gram_of(version)[:last, :last],
                ).tolist()
            )
        except MethodError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_calibrated_learns_how_far_to_go() -> None:
    """A run that slows down: every line overshoots, and its past says by how much."""
    steps = list(range(0, 210, 10))
    times = np.sqrt(np.asarray(steps, dtype=np.float64))
    weights = times[:, None] * np.random.default_rng(0).normal(size=30)
    real = weights[-1] * (np.sqrt(300) / np.sqrt(200))
    persisted = np.linalg.norm(weights[-1] - real)
    plain = two_point(steps, 300) @ weights
    learnt = coefficients("calibrated", steps, 300, gram_matrix=gram_of(weights)) @ weights
    assert np.linalg.norm(plain - real) > persisted
    assert np.linalg.norm(learnt - real) < 0.25 * persisted


def test_beyond_what_the_past_has_seen() -> None:
    with pytest.raises(
        MethodError,
        match=r"step 9000 is horizon 44, .* has no horizon near that",
    ):
        coefficients("calibrated", STEPS, 9000, gram_matrix=np.eye(7))
    with pytest.raises(MethodError, match="needs three checkpoints, but there are only 2"):
        coefficients("calibrated", [0, 10], 20, gram_matrix=np.eye(2))
    with pytest.raises(MethodError, match="base_step: auto cannot choose"):
        coefficients("two_point", STEPS, 9000, {"base_step": "auto"}, gram_matrix=np.eye(7))
    with pytest.raises(MethodError, match="damping: auto cannot choose"):
        coefficients("two_point", STEPS, 9000, damping="auto", gram_matrix=np.eye(7))


def test_at_the_last_step_nothing_is_added() -> None:
    found = coefficients("calibrated", STEPS, 200, gram_matrix=np.eye(7))
    assert found.tolist() == persistence(STEPS, 200).tolist()


def test_what_needs_the_weights() -> None:
    assert needs_gram_matrix("calibrated")
    assert needs_gram_matrix("two_point", {"base_step": "auto"})
    assert needs_gram_matrix("two_point", damping="auto")
    assert not needs_gram_matrix("two_point", {"base_step": 40}, 0.5)
    with pytest.raises(MethodError, match="calibrated needs the Gram matrix"):
        coefficients("calibrated", STEPS, 300)


def test_window_half_keeps_the_first_half_out() -> None:
    assert least_squares(STEPS, 300, window="half").tolist() == least_squares(STEPS, 300, window=4).tolist()
    # 500 is the middle; with two checkpoints left at least
    assert least_squares([0, 10, 20, 1000], 2000, window="half").tolist() == [
        0,
        0,
        *least_squares([20, 1000], 2000),
    ]


def test_rehearsals_are_of_like_horizons() -> None:
    found = rehearse([0, 100, 200, 400], 800)
    pairs = dict(
        zip(zip(found.origins.tolist(), found.targets.tolist(), strict=True), found.weights, strict=True)
    )
    # horizon 1: 100 → 200 and 200 → 400 match it and weigh as late as they are; 100 → 400 is too far
    assert pairs[1, 2] == pytest.approx(0.25)
    assert pairs[2, 3] == pytest.approx(0.5)
    assert pairs[1, 3] < 0.01
    assert len(rehearse([0, 100], 200)) == 0


def test_rounding_is_told_from_training() -> None:
    generator = np.random.default_rng(0)
    steps = list(range(20))
    straight = drift(steps, size=20_000, noise=0.05)
    assert rounding_share(gram_of(straight)) < 0.1
    walk = np.cumsum(generator.normal(size=(40, 20_000)), axis=0)
    assert 0.4 < rounding_share(gram_of(walk[::2])) < 0.6
    assert rounding_share(gram_of(straight + generator.normal(size=straight.shape))) > 0.9
    assert rounding_share(np.zeros((5, 5))) == 0.0
    shares = rounding_share(np.stack([np.eye(5), np.zeros((5, 5))]))
    assert shares.tolist() == pytest.approx([1.0, 0.0])


def test_the_leading_subspace_keeps_two_directions() -> None:
    steps = list(range(12))
    weights = drift(steps, size=300)
    values = np.linalg.eigvalsh(leading_subspace(gram_of(weights)))
    assert values[-2:] == pytest.approx(np.linalg.eigvalsh(gram_of(weights))[-2:])
    assert np.abs(values[:-2]).max() < 1e-9 * values[-1]
