"""The paired interval: fixed, right at the edges, and as wide as it says."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.evaluation.paired import paired_interval, student_t


def interval(differences: list[float] | NDArray[np.float64]) -> tuple[float, float]:
    return paired_interval(tuple(map(float, differences)), (0.0,) * len(differences))


def test_the_same_every_time() -> None:
    ours, theirs = (1.0, 0.0, 1.0, 1.0) * 50, (0.0, 0.0, 1.0, 0.0) * 50
    first = paired_interval(ours, theirs)
    paired_interval.cache_clear()
    assert paired_interval(ours, theirs) == first
    assert first[0] < 0.5 < first[1]
    assert paired_interval(theirs, ours) == pytest.approx((-first[1], -first[0]), abs=0.006)


def test_only_differences_on_the_same_problem_count() -> None:
    """What both get wrong, or both right, says nothing; unpaired, 0.83 and 0.86 of 500 would not differ."""
    theirs = [1.0] * 415 + [0.0] * 85
    ours = [1.0] * 430 + [0.0] * 70
    low, high = paired_interval(tuple(ours), tuple(theirs))
    assert 0.01 < low < 0.03 < high < 0.05
    shuffled = np.random.default_rng(0).permutation(ours)
    low, high = paired_interval(tuple(shuffled), tuple(theirs))
    assert low < 0 < high


def test_nothing_differs() -> None:
    assert interval([0.0] * 40) == (0.0, 0.0)


@pytest.mark.parametrize(("better", "is_seen"), [(3, False), (5, False), (6, True), (12, True)])
def test_few_problems_are_no_evidence(better: int, is_seen: bool) -> None:
    """As in the exact sign test, five of five could be chance (p = 0.06) and six of six could not (0.03)."""
    low, _ = interval([1.0] * better + [0.0] * (500 - better))
    assert (low > 0) is is_seen
    if not is_seen:
        assert interval([1.0] * better)[0] < 0


def test_the_interval_of_many_problems_is_the_normal_one() -> None:
    differences = np.random.default_rng(3).normal(0.02, 0.3, 5_000)
    low, high = interval(differences)
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)


def test_quantiles_of_students_t(monkeypatch: pytest.MonkeyPatch) -> None:
    tabulated = {3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for freedom, value in tabulated.items():
        assert student_t(0.975, freedom) == pytest.approx(value, abs=5e-4)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    for freedom, value in tabulated.items():
        assert student_t(0.975, freedom) == pytest.approx(value, rel=0.012 if freedom < 5 else 0.002)


@pytest.mark.parametrize("problems", [1, 2, 3, 5, 8, 20, 100])
def test_intervals_are_the_same_without_scipy(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as they are shown, to a tenth of a percent; a report on saved scores may be made without it."""
    draws = np.random.default_rng(problems).normal(0.05, 0.3, problems)
    exact = interval(draws)
    paired_interval.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    assert interval(draws) == pytest.approx(exact, abs=5e-4)
    paired_interval.cache_clear()


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 and 3 problems cannot be paired"):
        paired_interval((1.0, 0.0), (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="0 and 0 problems"):
        paired_interval((), ())


Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def right_or_wrong(up: float, down: float) -> tuple[Draw, float]:
    """Greedy answers: each problem goes better, worse, or the same."""
    return (lambda r, n: r.choice([1.0, -1.0, 0.0], p=[up, down, 1 - up - down], size=n)), up - down


def sampled(change: float) -> tuple[Draw, float]:
    """avg@16 on problems of all difficulties, of which every one gets ``change`` easier."""

    def draw(r: np.random.Generator, n: int) -> NDArray[np.float64]:
        chance = r.beta(0.7, 0.7, n) * (1 - change)
        return np.asarray((r.binomial(16, chance + change, n) - r.binomial(16, chance, n)) / 16)

    return draw, change


CASES = {
    "greedy, same": right_or_wrong(0.1, 0.1),
    "greedy, rarely differing": right_or_wrong(0.02, 0.02),
    "greedy, better": right_or_wrong(0.15, 0.05),
    "greedy, worse": right_or_wrong(0.05, 0.25),
    "avg@16, same": sampled(0.0),
    "avg@16, better": sampled(0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("problems", [30, 100, 500])
@pytest.mark.parametrize("case", CASES)
def test_the_interval_holds_the_truth_as_often_as_it_says(case: str, problems: int) -> None:
    draw, truth = CASES[case]
    generator = np.random.default_rng(11)
    trials = {30: 1500, 100: 1000, 500: 300}[problems]
    found = [interval(draw(generator, problems)) for _ in range(trials)]
    covered = sum(low <= truth <= high for low, high in found) / trials
    wrong_verdicts = sum((low > truth >= 0) or (high < truth <= 0) for low, high in found) / trials
    deviation = (0.05 * 0.95 / trials) ** 0.5
    assert covered >= 0.95 - 3 * deviation
    if problems == 500 and case != "greedy, rarely differing":  # few that differ: it is too wide
        assert covered <= 0.95 + 3 * deviation
    assert wrong_verdicts <= 0.05 + 3 * deviation
