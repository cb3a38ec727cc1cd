"""coefficients(): parameters, damping and results are checked, whoever wrote the method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubextrap.errors import BrokenMethod, MethodError, StepError
from hubextrap.methods import (
    Rehearsals,
    Rule,
    coefficients,
    find_method,
    persistence,
    register_method,
    registry,
)
from hubextrap.statistics import BacktestCandidate, GramTable, backtest_table, expect_of_last


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    registry.find_method.cache_clear()
    yield
    registry.find_method.cache_clear()


def test_by_name_with_parameters() -> None:
    assert coefficients("two_point", [0, 100, 200], 400, {"base_step": 100}).tolist() == [0, -2, 3]
    assert coefficients("persistence", [0, 100], 400).tolist() == [0, 1]


def test_damping_goes_part_of_the_way() -> None:
    assert coefficients("two_point", [0, 200], 400, damping=0.5).tolist() == [-0.5, 1.5]
    assert coefficients("two_point", [0, 200], 400, damping=0.0).tolist() == [0, 1]
    assert coefficients("two_point", [0, 200], 400, damping=1.0).tolist() == [-1, 2]


@settings(deadline=None)
@given(st.floats(0, 1), st.sampled_from(["two_point", "least_squares", "persistence"]))
def test_damping_is_linear_and_keeps_the_sum(damping: float, method: str) -> None:
    steps = [0, 40, 100, 130]
    result = coefficients(method, steps, 300, damping=damping)
    expected = (1 - damping) * persistence(steps, 300) + damping * coefficients(method, steps, 300)
    assert result == pytest.approx(expected, abs=1e-14)
    assert math.fsum(result) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("damping", [-0.1, 1.1, math.nan, True])
def test_damping_out_of_range(damping: float) -> None:
    with pytest.raises(MethodError, match="damping: must be a number from 0"):
        coefficients("two_point", [0, 200], 400, damping=damping)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("two_pont", {}, "there is no merge method two_pont; did you mean two_point?"),
        ("two_point", {"bas_step": 1}, "bas_step: unknown key; did you mean base_step?"),
        (
            "two_point",
            {"window": 3},
            "window: unknown key; it belongs to least_squares, and the method is two_point",
        ),
        ("persistence", {"q": 1}, "q: unknown key; persistence takes no parameters of its own"),
        ("two_point", {"q": 1}, "q: unknown key; two_point takes base_step"),
        ("two_point", {"base_step": 1.5}, "base_step: must be a whole number or auto or null, not 1.5"),
        ("two_point", {"base_step": True}, "base_step: must be a whole number or auto or null, not True"),
        ("least_squares", {"through_last": 1}, "through_last: must be true or false, not 1"),
    ],
)
def test_bad_parameters(method: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError) as error:
        coefficients(method, [0, 100, 200], 400, parameters)
    assert str(error.value).startswith(message)


def test_all_bad_parameters_at_once() -> None:
    with pytest.raises(MethodError, match=r"window: must be .*; through_last: must be "):
        coefficients("least_squares", [0, 1], 2, {"window": "x", "through_last": "x"})


@pytest.mark.parametrize(
    ("steps", "target", "message"),
    [
        ([0, 100, 200], 150, "target step 150 is before the last observed step 200; choose a later target"),
        ([0, 200, 100], 400, "step 100 comes after step 200: steps must increase"),
        ([0, 100, 100], 400, "step 100 comes after step 100: .* no step may come twice"),
        ([], 400, "no checkpoints"),
        ([0, 100], math.inf, "target step inf"),
    ],
)
def test_bad_steps(steps: list[int], target: float, message: str) -> None:
    with pytest.raises(StepError, match=message):
        coefficients("persistence", steps, target)


def test_broken_promises_of_a_method_are_named() -> None:
    def returning(values: list[float]):  # type: ignore[no-untyped-def]
        return lambda steps, target_step: np.array(values)

    for values, message in [
        ([1.0], r"short returned coefficients of shape \(1,\) for 2 checkpoints"),
        ([math.nan, 1.0], "not_finite returned coefficients that are not finite"),
        ([0.5, 0.4], "wrong_sum returned coefficients that sum to 0.9"),
    ]:
        name = message.split()[0]
        register_method(name, returning(values))
        with pytest.raises(MethodError, match=message):
            coefficients(name, [0, 1], 2)


@pytest.mark.parametrize("error", [ValueError("odd"), IndexError("list index out of range")])
def test_a_method_that_fails_is_named(error: Exception) -> None:
    def failing(steps: list[int], target_step: float) -> NDArray[np.float64]:
        raise error

    register_method("failing", failing)
    with pytest.raises(BrokenMethod, match=f"failing failed on 2 checkpoints .*{error}") as caught:
        coefficients("failing", [0, 1], 2)
    assert caught.value.__cause__ is error


def test_what_a_method_says_that_it_cannot_do_is_passed_on() -> None:
    def unable(steps: list[int], target_step: float) -> NDArray[np.float64]:
        raise MethodError("not on Sundays")

    register_method("unable", unable)
    with pytest.raises(MethodError, match=r"^not on Sundays$") as caught:
        coefficients("unable", [0, 1], 2)
    assert not isinstance(caught.value, BrokenMethod)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (
            np.zeros((1, 2)),
            r"own returned displacements of shape \(1, 2\) for 4 checkpoints, not \(1, \d, 4\)",
        ),
        ([[[0.0, 0.0, 1e-9, 0.0]]], "own returned displacements that sum to 1e-09, not 0"),
        ([[[0.0, np.nan, 0.0, 0.0]]], r"displacements that are not finite in float32: \[0.0, nan"),
    ],
)
def test_a_leave_one_out_is_held_to_what_it_promises(left_out: Any, message: str) -> None:
    def own(steps: list[int], target_step: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(gram.shape[:-1])

    def leave_one_out(
        steps: list[int], rehearsals: Rehearsals, gram: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        found = np.asarray(left_out)
        return found if found.ndim == 2 else np.repeat(found, len(rehearsals), axis=1)

    own.leave_one_out = leave_one_out  # type: ignore[attr-defined]
    register_method("own", own)
    steps = (0, 10, 20, 30)
    table = GramTable(steps, ("w",), np.array([1]), np.outer(steps, steps)[None].astype(float))
    with pytest.raises(BrokenMethod, match=message):
        expect_of_last([Rule(("*",), "own")], table, 40, rounded=False)


@pytest.mark.parametrize("unable", [np.nan, MethodError("nothing to leave out")])
def test_a_leave_one_out_that_cannot_serve_leaves_the_error_unknown(unable: Any) -> None:
    def own(steps: list[int], target_step: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(gram.shape[:-1])

    def leave_one_out(
        steps: list[int], rehearsals: Rehearsals, gram: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if isinstance(unable, MethodError):
            raise unable
        return np.full((len(gram), len(rehearsals), len(steps)), unable)

    own.leave_one_out = leave_one_out  # type: ignore[attr-defined]
    register_method("own", own)
    steps = (0, 10, 20, 30)
    table = GramTable(steps, ("w",), np.array([1]), np.outer(steps, steps)[None].astype(float))
    assert expect_of_last([Rule(("*",), "own")], table, 40, rounded=False).relative_error is None


def leading(
    steps: list[int], target_step: float, *, rank: int = 1, gram_matrix: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A method that reads the Gram matrix."""
    share = float(gram_matrix[-1, -1]) / float(np.trace(gram_matrix)) * rank
    return np.array([*[0.0] * (len(steps) - 2), 1 - share, share])


def test_a_method_that_declares_a_gram_matrix_gets_it() -> None:
    register_method("leading", leading)
    assert coefficients("leading", [0, 1], 2, gram_matrix=np.diag([1.0, 3.0])).tolist() == [0.25, 0.75]
    with pytest.raises(MethodError, match="leading needs the Gram matrix"):
        coefficients("leading", [0, 1], 2)
    with pytest.raises(MethodError, match="gram_matrix: unknown key"):
        coefficients("leading", [0, 1], 2, {"gram_matrix": 1})


@pytest.mark.parametrize("name", ["low_rank", "two_point", "calibrated"])
def test_prepared_saves_time_and_nothing_else(name: str) -> None:
    """A method that says the same one target, and one tensor, at a time has the same rows."""

    def one_at_a_time(
        steps: list[int], target_step: float, *, gram_matrix: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        assert gram_matrix.ndim == 2
        parameters = {"base_step": "auto"} if name == "two_point" else {}
        return find_method(name).function(steps, target_step, **parameters, gram_matrix=gram_matrix)  # type: ignore[no-any-return]

    def fitted(steps: list[int], target_step: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        return find_method(name).function(steps, target_step, gram)  # type: ignore[no-any-return]

    fitted.leave_one_out = find_method(name).leave_one_out  # type: ignore[attr-defined]
    register_method("bare", fitted if name == "calibrated" else one_at_a_time)
    assert find_method("bare").prepared is None is not find_method(name).prepared
    steps = (0, 10, 25, 30, 40, 55, 60, 80)
    walks = np.random.default_rng(0).standard_normal((3, len(steps), 20)).cumsum(axis=1)
    moves = walks - walks[:, :1]
    table = GramTable(steps, ("a", "b", "c"), np.array([20] * 3), moves @ np.swapaxes(moves, 1, 2))
    parameters = {"base_step": "auto"} if name == "two_point" else {}
    for damping in (1.0, "auto"):
        ours = backtest_table(table, [BacktestCandidate.of(name, damping, **parameters)]).rows
        theirs = backtest_table(table, [BacktestCandidate.of("bare", damping)]).rows
        assert len(ours) >= 5
        for row, bare in zip(ours, theirs, strict=True):
            assert row.relative_error == pytest.approx(bare.relative_error, rel=1e-9)
            assert row.expected_relative_error == bare.expected_relative_error
