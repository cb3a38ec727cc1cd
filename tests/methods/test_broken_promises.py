"""Whatever somebody else's method does or returns: one error that names it, never a wrong prediction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import BrokenMethod, MethodError, SourceError
from hubextrap.methods import Rule, coefficients, find_method, register_method, registry
from hubextrap.methods.rehearsal import Rehearsals
from hubextrap.statistics import BacktestCandidate, GramTable, backtest_table

STEPS = (0, 10, 20, 30, 40)
GRAM = np.stack([np.outer(STEPS, STEPS).astype(np.float64)] * 2)


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    find_method.cache_clear()
    yield
    find_method.cache_clear()


def last(count: int) -> NDArray[np.float64]:
    return np.eye(count)[-1]


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    "returned",
    [
        lambda count: fail(SystemExit(0)),
        lambda count: fail(SourceError("no MethodError")),
        lambda count: last(count) + 1j,
        lambda count: last(count).astype(str),
        lambda count: [1e300, *[0.0] * (count - 2), 1 - 1e300],
        lambda count: [-1e39, *[0.0] * (count - 2), 1e39],
        lambda count: (value for value in last(count)),
        lambda count: None,
        lambda count: last(count)[None],
    ],
    ids=["exits", "raises", "complex", "texts", "huge", "no float32", "generator", "None", "rows"],
)
def test_what_is_no_coefficients(returned: Callable[[int], Any]) -> None:
    def odd(steps: Any, target_step: float) -> Any:
        return returned(len(steps))

    register_method("odd", odd)
    with pytest.raises(BrokenMethod, match=r"^odd "):
        Rule(("*",), "odd", {}, 1.0).check(STEPS, [50])
    with pytest.raises(BrokenMethod, match=r"^odd "):
        coefficients("odd", STEPS, 50, damping="auto", gram_matrix=GRAM)


@pytest.mark.parametrize(
    "returned",
    [list, tuple, *(lambda row, kind=kind: row.astype(kind) for kind in (int, bool, np.float32, object))],
)
def test_numbers_of_any_kind_are_coefficients(returned: Callable[[Any], Any]) -> None:
    register_method("plain", lambda steps, target_step: returned(last(len(steps))))
    assert coefficients("plain", STEPS, 50).tolist() == [0, 0, 0, 0, 1]


def peeks(steps: Any, rehearsals: Rehearsals, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """What it is to predict."""
    found = np.zeros((*gram.shape[:-2], len(rehearsals), len(steps)))
    for row, (origin, target) in enumerate(zip(rehearsals.origins, rehearsals.targets, strict=True)):
        found[..., row, target], found[..., row, origin] = 1.0, -1.0
    return found


def writes(steps: Any, rehearsals: Rehearsals, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    rehearsals.weights[:] = 0.0
    return np.zeros((*gram.shape[:-2], len(rehearsals), len(steps)))


@pytest.mark.parametrize(
    ("leave_one_out", "said"), [(peeks, "after a rehearsal's origin"), (writes, "read-only")]
)
def test_rehearsals_that_know_the_end_or_change_it(leave_one_out: Callable[..., Any], said: str) -> None:
    def odd(steps: Any, target_step: float, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(gram.shape[:-1])

    odd.leave_one_out = leave_one_out  # type: ignore[attr-defined]
    register_method("odd", odd)
    table = GramTable(STEPS, ("a", "b"), np.array([4, 4]), GRAM)
    with pytest.raises(BrokenMethod, match=rf"^odd .*{said}"):
        backtest_table(table, [BacktestCandidate.of("odd")])


def test_a_package_that_exits_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exiting_package.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    register_method("exiting", "exiting_package:method")
    with pytest.raises(MethodError, match="exiting cannot be imported"):
        find_method("exiting")
    assert "exiting_package" not in sys.modules
