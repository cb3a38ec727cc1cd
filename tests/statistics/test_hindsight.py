"""What was said, against what was found: which row of a backtest says it, and what it comes to."""

from __future__ import annotations

import pytest

from hubextrap.statistics import Backtest, BacktestRow
from hubextrap.statistics.hindsight import (
    Foresight,
    HindsightRow,
    hindsight_cells,
    hindsight_notes,
    in_hindsight,
)

METHOD = "two_point"


def row(
    last: int, target: int, error: float, expected: float | None, stderr: float | None = None
) -> BacktestRow:
    return BacktestRow(
        METHOD, last, target, 0.5, error, expected,
        relative_error_stderr=stderr, expected_relative_error_stderr=stderr,
    )  # fmt: skip


def backtest(*rows: BacktestRow, steps: tuple[int, ...] = (0, 10, 20, 30, 40)) -> Backtest:
    return Backtest(steps, rows, 0.0, False, (), None)


ROWS = (row(10, 20, 0.4, 0.5), row(10, 30, 0.9, 0.6), row(20, 30, 1.2, 0.8), row(20, 40, 1.5, None))


@pytest.mark.parametrize(
    ("target", "there", "found", "expected"),
    [
        (30, 30, 0.9, 0.6),  # its target
        (25, 20, 0.4, 0.5),  # passed, or not there yet: the next checkpoint
        (99, 20, 0.4, 0.5),
        (None, 20, 0.4, 0.5),
    ],
)
def test_it_is_held_against_its_target_or_the_next_checkpoint(
    target: int | None, there: int, found: float, expected: float
) -> None:
    (only,) = in_hindsight([Foresight(10, METHOD, target, 0.7)], backtest(*ROWS)).rows
    assert (only.found_step, only.found_error, only.expected_there) == (there, found, expected)
    assert only.said.expected_error == 0.7


def test_nothing_is_known_of_the_newest_nor_of_a_method_that_could_not_serve() -> None:
    said = [Foresight(40, METHOD, 50, 0.2), Foresight(10, "calibrated", 20, 0.1)]
    unserved, newest = in_hindsight(said, backtest(*ROWS)).rows
    assert (newest.found_step, newest.found_error, newest.skill, newest.within) == (None, None, None, None)
    assert (unserved.found_step, unserved.found_error) == (20, None)


def test_what_they_come_to() -> None:
    found = in_hindsight([Foresight(10, METHOD, 20), Foresight(20, METHOD, 30)], backtest(*ROWS))
    assert [one.skill for one in found.rows] == pytest.approx([0.6, -0.2])
    assert [one.within for one in found.rows] == [True, False]
    assert "Of 2 predictions" in found.line
    assert "1 came nearer" in found.line
    assert "mean error is 0.80. On average, 0.65 was expected; 1 came out no worse" in found.line
    assert found.as_dict()["rows"][1]["found_error"] == 1.2
    assert "Nothing has been found out yet" in in_hindsight([], backtest()).line


@pytest.mark.parametrize(("error", "within"), [(0.77, True), (0.79, False)])
def test_two_standard_errors_of_both_are_allowed(error: float, within: bool) -> None:
    """√(.1² + .1²)·2 = .283."""
    (only,) = in_hindsight([Foresight(10, METHOD, 20)], backtest(row(10, 20, error, 0.5, 0.1))).rows
    assert only.within is within
    assert "± 0.100" in hindsight_cells(only)[6]


def test_replaced_checkpoints_mark_what_was_made_of_them() -> None:
    (only,) = in_hindsight([Foresight(20, METHOD, 30)], backtest(*ROWS), {20: {10, 0}}).rows
    assert isinstance(only, HindsightRow)
    assert only.replaced == (0, 10)
    assert hindsight_cells(only)[0] == "step 20 *"


def test_rows_that_are_marked_alike_share_a_note() -> None:
    said = [Foresight(10, METHOD, 20), Foresight(20, METHOD, 30), Foresight(30, METHOD, 40)]
    found = in_hindsight(said, backtest(*ROWS), {10: {0}, 20: {0}, 30: {0, 20}})
    assert hindsight_notes(found) == [
        "* The weights of step 0 have been replaced since the prediction from steps 10, 20.",
        "* The weights of steps 0, 20 have been replaced since the prediction from step 30.",
    ]
