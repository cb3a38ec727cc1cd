"""A backtest's errors and expected errors, in plain loops; no rehearsal is fitted to its own origin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.methods import coefficients, rehearse, rounding_share
from hubextrap.statistics import BacktestCandidate, GramTable, backtest_table

STEPS = (10, 50, 90, 110, 130, 170, 210, 300)
Run = list[NDArray[np.float64]]
Predict = Callable[..., list[NDArray[np.float64]]]


def run_of(seed: int) -> Run:
    """Two tensors, (K, elements) each, that drift and bend and hardly wander."""
    generator = np.random.default_rng(seed)
    times = (np.asarray(STEPS, dtype=np.float64)[:, None] - STEPS[0]) / 290
    return [
        times * generator.normal(size=size)
        + times**2 * generator.normal(size=size)
        + 0.03 * np.cumsum(generator.normal(size=(len(STEPS), size)), axis=0)
        for size in (20, 31)
    ]


def lines(values: NDArray[np.float64], origin: int) -> NDArray[np.float64]:
    """(3, elements): the slopes through ``origin`` over all of its past, its last half and quarter."""
    times = np.asarray(STEPS, dtype=np.float64) - STEPS[0]
    slopes = []
    for window in (0.0, 0.5, 0.75):
        within = [k for k in range(origin) if times[k] >= window * times[origin]] or [origin - 1]
        offsets = times[within] - times[origin]
        slopes.append(offsets @ (values[within] - values[origin]) / (offsets @ offsets))
    return np.stack(slopes)


def pairs(last: int, target: float, left_out: int | None) -> list[tuple[int, int, float]]:
    found = rehearse(STEPS[: last + 1], target)
    rows = zip(found.origins.tolist(), found.targets.tolist(), found.weights.tolist(), strict=True)
    return [row for row in rows if row[0] != left_out]


def calibrated(
    run: Run, fitted: int, wanted: float, origin: int, target: float, left_out: int | None
) -> list[NDArray[np.float64]]:
    """The displacement of each tensor from ``origin`` to ``target``.

    It is fitted to the rehearsals of step ``wanted`` from checkpoint ``fitted``, without those of one origin.
    """
    result = []
    for values in run:
        left, right = np.zeros((3, 3)), np.zeros(3)
        for j, k, weight in pairs(fitted, wanted, left_out):
            moved, motion = (STEPS[k] - STEPS[j]) * lines(values, j), values[k] - values[j]
            size = motion @ motion + np.mean(np.sum(moved**2, axis=1))
            left += weight / size * moved @ moved.T
            right += weight / size * moved @ motion
        beta = np.linalg.solve(left + 0.2 * np.trace(left) / 3 * np.eye(3), right)
        result.append((target - STEPS[origin]) * beta @ lines(values, origin))
    return result


def damped_line(
    run: Run, fitted: int, wanted: float, origin: int, target: float, left_out: int | None
) -> list[NDArray[np.float64]]:
    result = []
    for values in run:
        above = below = 0.0
        for j, k, weight in pairs(fitted, wanted, left_out):
            moved, motion = plain_line(values, j, STEPS[k]), values[k] - values[j]
            size = motion @ motion + moved @ moved
            above += weight * moved @ motion / size
            below += weight * moved @ moved / size
        result.append(min(max(above / below, 0.0), 1.0) * plain_line(values, origin, target))
    return result


def plain_line(values: NDArray[np.float64], origin: int, target: float) -> NDArray[np.float64]:
    row = coefficients("two_point", STEPS[: origin + 1], target)
    return np.asarray(row @ values[: origin + 1] - values[origin])


def undamped_line(
    run: Run, fitted: int, wanted: float, origin: int, target: float, left_out: int | None
) -> list[NDArray[np.float64]]:
    return [plain_line(values, origin, target) for values in run]


def leading_line(
    run: Run, fitted: int, wanted: float, origin: int, target: float, left_out: int | None
) -> list[NDArray[np.float64]]:
    """Each tensor by its own Gram matrix."""
    result = []
    for values in run:
        known = values[: origin + 1] - values[0]
        row = coefficients("low_rank", STEPS[: origin + 1], target, gram_matrix=known @ known.T)
        result.append(np.asarray(row @ known - known[-1]))
    return result


def relative(run: Run, moved: Sequence[NDArray[np.float64]], origin: int, target: int) -> float:
    """The relative error over all tensors."""
    real = [values[target] - values[origin] for values in run]
    error = sum(float(np.sum((one - other) ** 2)) for one, other in zip(moved, real, strict=True))
    return math.sqrt(error / sum(float(np.sum(one**2)) for one in real))


@pytest.mark.parametrize(
    ("candidate", "predict"),
    [
        (BacktestCandidate.of("calibrated"), calibrated),
        (BacktestCandidate.of("two_point", "auto"), damped_line),
        (BacktestCandidate.of("two_point"), undamped_line),
        (BacktestCandidate.of("low_rank"), leading_line),
    ],
    ids=["calibrated", "damped", "plain", "by its Gram matrix"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_and_expected_errors_by_hand(
    candidate: BacktestCandidate, predict: Predict, seed: int
) -> None:
    run = run_of(seed)
    grams = np.array([(values - values[0]) @ (values - values[0]).T for values in run])
    assert all(
        rounding_share(gram[:count, :count]) < 0.1 for gram in grams for count in range(2, len(STEPS) + 1)
    )
    rows = backtest_table(GramTable(STEPS, ("a", "b"), np.array([20, 31]), grams), [candidate]).rows
    seen = expected = 0
    for row in rows:
        last, target = STEPS.index(row.last_step), STEPS.index(row.target_step)
        assert row.horizon == pytest.approx((row.target_step - row.last_step) / (row.last_step - 10))
        moved = predict(run, last, row.target_step, last, row.target_step, None)
        assert row.relative_error == pytest.approx(relative(run, moved, last, target), rel=1e-6, abs=1e-9)
        assert row.skill == pytest.approx(1 - row.relative_error)
        least = 2 if candidate.name == "low_rank" else 1  # checkpoints before an origin
        rehearsals = [pair for pair in pairs(last, row.target_step, None) if pair[0] >= least]
        seen += 1
        if len({j for j, _, _ in rehearsals}) < 2:
            assert candidate.name in ("two_point", "low_rank") or row.expected_relative_error is None
            continue
        errors = [
            relative(run, predict(run, last, row.target_step, j, STEPS[k], j), j, k) for j, k, _ in rehearsals
        ]
        mean = np.average(errors, weights=[weight for _, _, weight in rehearsals])
        assert row.expected_relative_error == pytest.approx(mean, rel=1e-6, abs=2e-6)
        expected += 1
    assert seen >= 14
    assert expected >= 4
