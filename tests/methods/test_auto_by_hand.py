"""What `auto` chooses, in plain loops over the rehearsals, from the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError, RecipeError, StepError
from hubextrap.methods import Rule, assign_rules, coefficients, rehearse, rounding_share, two_point

STEPS = [0, 40, 80, 100, 120, 160, 200, 260]


def run_of(steps: Sequence[int], seed: int) -> NDArray[np.float64]:
    """(K, 30) weights that drift, bend, and wander little, so that no rounding is seen in them."""
    generator = np.random.default_rng(seed)
    times = (np.asarray(steps, dtype=np.float64)[:, None] - steps[0]) / (steps[-1] - steps[0])
    bent = generator.normal(size=30) * times + 0.7 * generator.normal(size=30) * times**2
    return np.asarray(bent + 0.05 * np.cumsum(generator.normal(size=(len(steps), 30)), axis=0))


def gram_of(run: NDArray[np.float64]) -> NDArray[np.float64]:
    gram: NDArray[np.float64] = (run - run[0]) @ (run - run[0]).T
    assert rounding_share(gram) < 0.1
    return gram


def best_base(steps: Sequence[int], target: float, run: NDArray[np.float64]) -> int | None:
    """The base whose share of the way predicted the past best; half of the rehearsals have to have one."""
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    found = rehearse(steps, target)
    means = {}
    for base in range(len(steps) - 1):
        share = times[base] / times[-1]
        total = errors = 0.0
        for j, k, weight in zip(found.origins, found.targets, found.weights, strict=True):
            near = min(range(j), key=lambda i, j=j, share=share: abs(times[i] - share * times[j]))  # type: ignore[misc]
            if abs(math.log((times[j] - times[near]) / times[j] / (1 - share))) > math.log(1.5):
                continue
            way = (times[k] - times[j]) / (times[j] - times[near])
            step = way * (run[j] - run[near])
            size = np.sum((run[k] - run[j]) ** 2) + np.sum(step**2)
            errors += weight * np.sum((run[j] + step - run[k]) ** 2) / size
            total += weight
        if total >= 0.5 * found.weights.sum():
            means[base] = errors / total
    return min(means, key=lambda base: means[base]) if means else None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("first", [0, 500])
def test_the_base_is_the_one_that_would_have_predicted_the_past_best(seed: int, first: int) -> None:
    generator = np.random.default_rng(seed)
    steps = [first, *(first + np.cumsum(generator.integers(5, 80, 8))).tolist()]
    run = run_of(steps, seed)
    chosen = []
    for reach in (1.1, 1.4, 2.0):
        target = steps[-1] + (reach - 1) * (steps[-1] - steps[0])
        base = best_base(steps, target, run)
        assert base is not None
        found = coefficients("two_point", steps, target, {"base_step": "auto"}, gram_matrix=gram_of(run))
        assert found.tolist() == pytest.approx(two_point(steps, target, base_step=steps[base]), abs=2e-5)
        chosen.append(base)
    assert chosen != [0, 0, 0] or seed  # some are later than the first


def test_bases_vary() -> None:
    """The test above would say little if it were always one."""
    found = {best_base(STEPS, 340, run_of(STEPS, seed)) for seed in range(20)}
    assert len(found) >= 3


def best_damping(
    method: str, parameters: dict[str, object], steps: Sequence[int], target: float, run: NDArray[np.float64]
) -> float:
    found = rehearse(steps, target)
    above = below = 0.0
    for j, k, weight in zip(found.origins, found.targets, found.weights, strict=True):
        try:
            row = coefficients(
                method, steps[: j + 1], steps[k], parameters, gram_matrix=gram_of(run)[: j + 1, : j + 1]
            )
        except MethodError:
            continue
        predicted, real = row @ run[: j + 1] - run[j], run[k] - run[j]
        size = np.sum(predicted**2) + np.sum(real**2)
        above += weight * np.sum(predicted * real) / size
        below += weight * np.sum(predicted**2) / size
    return min(max(above / below, 0.0), 1.0)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("two_point", {}),
        ("two_point", {"base_step": 100}),
        ("least_squares", {"window": "half", "through_last": True}),
        ("low_rank", {"rank": 1}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_damping_is_the_one_that_would_have_served_the_past_best(
    method: str, parameters: dict[str, object], seed: int
) -> None:
    run = run_of(STEPS, seed)
    for target in (280, 340, 500):
        damping = best_damping(method, parameters, STEPS, target, run)
        plain = coefficients(method, STEPS, target, parameters, gram_matrix=gram_of(run))
        found = coefficients(method, STEPS, target, parameters, damping="auto", gram_matrix=gram_of(run))
        expected = damping * plain + (1 - damping) * np.eye(len(STEPS))[-1]
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("size", "damping"), [(-1.0, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (3.0, 1.0)])
def test_a_damping_is_from_0_to_1(size: float, damping: float) -> None:
    """The first half of the way predicts the second, which went ``size`` times as far."""
    run = np.array([[0.0], [1.0], [1.0 + size]])
    found = coefficients("two_point", [0, 10, 20], 40, damping="auto", gram_matrix=run @ run.T)
    assert found.tolist() == pytest.approx([-damping, 0.0, 1.0 + damping], abs=2**-19)


def test_half_of_the_rehearsals_have_to_have_a_like_base() -> None:
    """Bases late on the way have no like among few early checkpoints, and are not chosen."""
    steps = [0, 100, 200, 290, 300]
    run = np.array([[0.0], [1.0], [2.0], [2.9], [3.0]])
    found = coefficients("two_point", steps, 450, {"base_step": "auto"}, gram_matrix=run @ run.T)
    assert int(np.flatnonzero(found)[0]) != 3


def test_a_rule_is_checked_before_any_weight_is_read() -> None:
    Rule(("*",), "calibrated").check([100, 200, 300], [400])
    with pytest.raises(MethodError, match=r"step 9000 .* calibrated cannot predict"):
        Rule(("*",), "calibrated").check([100, 200, 300], [400, 9000])
    with pytest.raises(StepError, match="before the last observed step 300"):
        Rule(("*",), "persistence").check([100, 200, 300], [400, 299])
    with pytest.raises(MethodError, match="rank 3"):
        Rule(("*",), "low_rank", {"rank": 3}).check([100, 200, 300], [350])


def test_a_rule_says_whether_it_needs_weights_and_is_not_damped_unless_it_says_so() -> None:
    assert Rule(("*",), "two_point").damping == 1.0
    assert Rule(("*",), "two_point").needs_gram_matrix is False
    assert Rule(("*",), "two_point", {"base_step": "auto"}).needs_gram_matrix is True
    assert Rule(("*",), "two_point", damping="auto").needs_gram_matrix is True
    assert Rule(("a", "b*"), "two_point").matches("bc")
    assert not Rule(("a", "b*"), "two_point").matches("ab")


def test_names_are_shown_of_three_tensors() -> None:
    with pytest.raises(RecipeError, match=r"its tensors have names like a, b, c$"):
        assign_rules([Rule(("x",), "two_point"), Rule(("*",), "two_point")], ["a", "b", "c", "d"])
