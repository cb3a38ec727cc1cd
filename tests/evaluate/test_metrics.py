"""avg@n, pass@k and maj@n: worked by hand, and counted over every subset of the samples."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest

from hubextrap.evaluation.scoring import (
    avg_at_n,
    figures_of_samples,
    maj_at_n,
    pass_at_k,
    pass_ks,
    sample_metrics,
)


def flags(right: int, n: int) -> list[bool]:
    return [True] * right + [False] * (n - right)


@pytest.mark.parametrize(
    ("right", "n", "k", "by_hand"),
    [
        (1, 2, 1, 1 / 2),
        (1, 4, 2, 1 / 2),  # 3 of the 6 pairs hold the right one
        (2, 4, 2, 5 / 6),  # 1 of the 6 pairs is wrong and wrong
        (2, 5, 3, 9 / 10),  # 1 of the 10 triples holds neither
        (3, 10, 4, 5 / 6),  # 1 − C(7, 4) / C(10, 4) = 1 − 35 / 210
        (0, 8, 8, 0.0),
        (1, 8, 8, 1.0),
        (6, 8, 3, 1.0),  # two wrong ones do not fill three
    ],
)
def test_pass_at_k_by_hand(right: int, n: int, k: int, by_hand: float) -> None:
    assert pass_at_k(flags(right, n), k) == pytest.approx(by_hand, abs=1e-15)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample() -> None:
    for n in range(1, 9):
        for right in range(n + 1):
            samples = flags(right, n)
            for k in range(1, n + 1):
                subsets = list(combinations(samples, k))
                counted = Fraction(sum(any(subset) for subset in subsets), len(subsets))
                assert pass_at_k(samples, k) == pytest.approx(float(counted), abs=1e-12)


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_pass_at_k_of_many_samples_agrees_with_exact_binomials(n: int) -> None:
    for right in (0, 1, 2, n // 7, n // 2, n - 3, n):
        for k in (1, 2, 16, n // 2, n):
            exact = 1 - Fraction(comb(n - right, k), comb(n, k))
            assert pass_at_k(flags(right, n), k) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def test_pass_at_1_is_avg() -> None:
    for right in range(17):
        assert pass_at_k(flags(right, 16), 1) == pytest.approx(avg_at_n(flags(right, 16)), abs=1e-15)
        assert avg_at_n(flags(right, 16)) == right / 16


def test_more_than_was_drawn_cannot_be_estimated() -> None:
    with pytest.raises(ValueError, match=r"pass@5 needs at least 5 .*4 were drawn"):
        pass_at_k(flags(1, 4), 5)
    with pytest.raises(ValueError, match="pass@0"):
        pass_at_k(flags(1, 4), 0)


@pytest.mark.parametrize(
    ("answers", "by_hand"),
    [
        (["7", "7", "3"], 1.0),
        (["3", "3", "7"], 0.0),
        (["7", "3"], 1 / 2),  # a tie is broken by a fair coin
        (["7", "7", "3", "3", "5", "5"], 1 / 3),
        ([None, None, None, "7"], 1.0),  # no answer is no vote
        ([None, None], 0.0),
        (["7"], 1.0),
    ],
)
def test_majority_by_hand(answers: list[str | None], by_hand: float) -> None:
    right = [answer == "7" for answer in answers]
    assert maj_at_n(answers, right) == pytest.approx(by_hand)


def test_majority_does_not_depend_on_the_order_of_the_samples() -> None:
    answers = ["7", "3", "3", "7", "5"]
    expected = maj_at_n(answers, [answer == "7" for answer in answers])
    assert expected == 0.5
    for turn in range(5):
        turned = answers[turn:] + answers[:turn]
        assert maj_at_n(turned, [answer == "7" for answer in turned]) == expected


def test_which_k_are_reported() -> None:
    assert [pass_ks(n) for n in (1, 2, 4, 8, 16, 64)] == [
        (1,),
        (2,),
        (4,),
        (4, 8),
        (4, 16),
        (4, 16, 64),
    ]


def test_every_figure_has_a_metric_of_its_name() -> None:
    answers = ["7", "3", "7", None, "7", "7", "1", "2"]
    found = figures_of_samples(answers, [answer == "7" for answer in answers])
    assert found == {
        "avg@8": 0.5,
        "maj@8": 1.0,
        "pass@4": pytest.approx(1 - comb(4, 4) / comb(8, 4)),
        "pass@8": 1.0,
    }
    assert [metric["metric"] for metric in sample_metrics(8)] == list(found)
