"""What the guard, the probe and the clocks of a re-grounded run do at their limits and on either side."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubextrap.errors import CorruptFile, MethodError
from hubextrap.regrounding import Decision, Judgement, Window, judge_jump, judge_probe, read_history
from hubextrap.regrounding.history import rewrite_history

TWO = [Window(0, 20), Window(80, 100)]


def judged(first: float, last: float, n: int = 20, **options: object) -> Judgement:
    """Two windows along one direction with these motions, and the line between them that the jump took."""
    points = np.array([[0.0], [first], [4 * first], [4 * first + last]])
    return judge_jump(TWO, n, "two_point", (points @ points.T)[None], **options)  # type: ignore[arg-type]


def test_an_error_at_the_limit_may_jump_and_one_above_may_not() -> None:
    """The second window went twice as far as the first: an error of one half, to the last bit."""
    found = judged(1.0, 2.0, max_error=0.5)
    assert found.backtest_error == 0.5
    assert found.expected_relative_error == 0.5
    assert found.jump
    assert not judged(1.0, 2.0, max_error=math.nextafter(0.5, 0)).jump
    # the default: as bad as standing still may jump
    assert judged(2.0, 1.0).backtest_error == 1.0
    assert judged(2.0, 1.0).jump
    assert not judged(2.0001, 1.0).jump


@pytest.mark.parametrize(
    ("motions", "backtest_is_worse"), [((0.2, 1.0, 1.0), False), ((1.0, 1.0, 2.0), True)]
)
def test_the_worse_of_both_errors_decides(motions: tuple[float, ...], backtest_is_worse: bool) -> None:
    """The last window as the one before it had it, after another turn; and the other way round."""
    three = [Window(0, 20), Window(80, 100), Window(160, 180)]
    points = np.cumsum([0.0, motions[0], 0.0, motions[1], 0.0, motions[2]])[:, None]
    gram = (points @ points.T)[None]
    found = judge_jump(three, 20, "two_point", gram, max_error=None)
    assert found.backtest_error is not None
    assert found.expected_relative_error is not None
    assert (found.backtest_error > found.expected_relative_error) == backtest_is_worse
    limit = max(found.backtest_error, found.expected_relative_error)
    assert judge_jump(three, 20, "two_point", gram, max_error=limit).jump
    assert not judge_jump(three, 20, "two_point", gram, max_error=limit * 0.999).jump


@pytest.mark.parametrize(("n", "jump"), [(40, True), (132, True), (133, False)])
def test_no_farther_than_3_3_times_what_was_rehearsed(n: int, jump: bool) -> None:
    """Forty steps of training have rehearsed a horizon of 1, twenty after twenty; e^1.2 is 3.32."""
    assert judged(1.0, 1.0, n=n).jump is jump


@pytest.mark.parametrize(
    ("share", "moved"), [(0.5e-13, False), (0.9e-13, False), (1.1e-13, True), (2e-13, True)]
)
def test_what_is_a_ten_million_millionth_of_the_way_is_rounding(share: float, moved: bool) -> None:
    """The last window's own squared way, as a share of its ends' squared ways from the start."""
    gram = np.array([[0.0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    gram[2, 3] = gram[3, 2] = 1 - share
    found = judge_jump(TWO, 20, "two_point", gram[None], max_error=None)
    assert found.jump is moved


@pytest.mark.parametrize(
    ("after", "keep", "n"),
    [
        (0.25, True, 60),  # just the margin worse
        (0.25 - 1e-12, False, 30),
        (0.75, True, 60),  # just the margin better
        (0.75 + 1e-12, True, 120),
    ],
)
def test_a_probe_has_to_change_by_more_than_the_margin(after: float, keep: bool, n: int) -> None:
    found = judge_probe(60, 0.5, after, margin=0.25, longest=1000)
    assert (found.keep, found.n) == (keep, n)


def test_without_a_margin_every_change_counts() -> None:
    assert judge_probe(60, 0.5, 0.5, margin=0.0, longest=99).n == 60
    assert judge_probe(60, 0.5, math.nextafter(0.5, 0), margin=0.0, longest=99).n == 30
    assert judge_probe(60, 0.5, math.nextafter(0.5, 1), margin=0.0, longest=99).n == 99


@pytest.mark.parametrize(
    ("n", "halved", "doubled"),
    [
        (1, 1, 2),
        (2, 1, 4),
        (3, 1, 6),
        (7, 3, 14),
        (50, 25, 100),
        (51, 25, 100),
        (100, 50, 100),
        (101, 50, 101),
    ],
)
def test_n_is_halved_and_doubled_between_1_and_the_longest(n: int, halved: int, doubled: int) -> None:
    assert judge_probe(n, 1.0, 0.0, margin=0.0, longest=100).n == halved
    found = judge_probe(n, 0.0, 1.0, margin=0.0, longest=100)
    assert (found.n, "→" in found.reason) == (doubled, doubled != n)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers(value: float) -> None:
    with pytest.raises(MethodError, match="must return a finite number"):
        judge_probe(60, value, 0.5, margin=0.0, longest=60)
    assert not judge_probe(60, 0.5, value, margin=9.0, longest=60).keep


def decision(coefficients: list[float]) -> Decision:
    return Decision(
        rl_steps=4,
        represented_steps=8,
        rule="two_point",
        n_wanted=4,
        n_used=4,
        action="jumped",
        reason="a test",
        snapshot_steps=(0, 4),
        coefficients={"w": coefficients},  # type: ignore[dict-item]
        backtest_error=None,
        expected_relative_error=None,
    )


@pytest.mark.parametrize("largest", [1.0, 100.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_histories_coefficients_may_be_off_by_a_millionth_of_the_largest(
    largest: float, sign: int, tmp_path: Path
) -> None:
    path = tmp_path / "reground_history.jsonl"
    for share, taken in ((0.9, True), (1.1, False)):
        off = sign * share * 1e-6 * largest
        rewrite_history(path, [decision([1 - largest + off, largest])])
        if taken:
            assert len(read_history(path)) == 1
        else:
            with pytest.raises(CorruptFile, match="do not sum to 1"):
                read_history(path)


@pytest.mark.parametrize("field", ["rl_steps", "represented_steps", "n_wanted", "n_used"])
def test_no_count_of_a_history_is_below_0(field: str, tmp_path: Path) -> None:
    path = tmp_path / "reground_history.jsonl"
    rewrite_history(path, [replace(decision([-1.0, 2.0]), **{field: 0})])  # type: ignore[arg-type]
    assert len(read_history(path)) == 1
    rewrite_history(path, [replace(decision([-1.0, 2.0]), **{field: -1})])  # type: ignore[arg-type]
    with pytest.raises(CorruptFile, match="below 0"):
        read_history(path)


@pytest.mark.parametrize(
    ("steps", "taken"), [((0, 4), True), ((4, 4), False), ((4, 0), False), ((-1, 4), False)]
)
def test_snapshot_steps_of_a_history_increase(steps: tuple[int, int], taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "reground_history.jsonl"
    rewrite_history(path, [replace(decision([-1.0, 2.0]), snapshot_steps=steps)])
    if taken:
        assert read_history(path)[0].snapshot_steps == steps
    else:
        with pytest.raises(CorruptFile):
            read_history(path)
