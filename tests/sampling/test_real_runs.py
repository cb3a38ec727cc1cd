"""Samples of the real runs, which HUBEXTRAP_DATA names the folder of, held against all of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hubextrap
import hubextrap.scans.places
from hubextrap import Run, find_trajectory
from hubextrap.recipe.fits import DEFAULT_SAMPLE
from hubextrap.scans.places import places_of
from hubextrap.statistics import Backtest, GramTable, backtest_table
from hubextrap.statistics.backtesting import BacktestCandidate, candidates

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CASES = [("A", "F32"), ("C", "F32"), ("E2", "F32"), ("F", "F32"), ("C", "BF16")]
METHODS = [BacktestCandidate.of(name) for name in ("calibrated", "late_lines", "two_point", "low_rank")]
SPREADS = ((0, 0), (0, 3), (1, 1), (2, 0), (2, 2), (3, 1), (4, 0))
"""Cases and methods whose rows' spread is looked at: each case, and each method."""
SEEDS, STATED_BY = 50, 6
"""Draws whose errors are compared, and those of them whose standard errors are."""
TOLD = {
    "A": ((400, 500), (200, 400)),
    "C": ((320, 400), (200, 300), (200, 400)),
    "F": tuple((last, last + ahead) for last in range(80, 281, 40) for ahead in (50, 120)),
}
"""Last and target of the predictions in the tables of the pages, beside those of every run."""
ROUNDING = 1e-9
"""Errors differ by so much though all weights were drawn: sums are made in another order."""


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return __import__("build_tables")


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stretches so short that the runs' matrices are drawn as those of large models are."""
    for name in ("STRETCH", "LONGEST_STRETCH"):
        monkeypatch.setattr(hubextrap.scans.places, name, 1024)
    places_of.cache_clear()
    yield
    places_of.cache_clear()


def case_of(tables: Any, rlvr: Path, name: str, dtype: str = "F32") -> Any:
    return tables.sample_tables.Case.of(tables.run(rlvr / f"rlvr-{name}"), dtype)


def figures(found: Backtest, name: str) -> dict[tuple[str, int, int], float]:
    """One figure of each row, NaN where it has none."""
    values = ((row, getattr(row, name)) for row in found.rows)
    return {
        (row.method, row.last_step, row.target_step): np.nan if value is None else value
        for row, value in values
    }


def off_and_stated(sampled: Backtest, exact: Backtest, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(R,) each: by how much rows of a sample are off, and their standard errors."""
    right, found, stated = (
        figures(exact, name),
        figures(sampled, name),
        figures(sampled, f"{name}_stderr"),
    )
    assert right.keys() == found.keys()
    rows = [row for row, value in right.items() if not np.isnan(value)]
    assert rows == [row for row, value in found.items() if not np.isnan(value)]
    assert not any(np.isnan(stated[row]) for row in rows)
    return np.array([abs(found[row] - right[row]) for row in rows]), np.array([stated[row] for row in rows])


def within_three(case: Any, draw: Any, seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    """Of each figure, which rows of all methods are off by no more than three of their standard errors."""
    tables = case.sampled(draw, seed), case.table
    sampled, exact = (backtest_table(table, candidates(), dtypes=[case.dtype]) for table in tables)
    assert sampled.rounded == exact.rounded == (case.dtype == "BF16")
    judged = ["relative_error", "expected_relative_error"]
    judged += ["signal_error", "expected_signal_error"] if exact.rounded else []
    both = {name: off_and_stated(sampled, exact, name) for name in judged}
    assert all(len(off) > 500 for off, _ in both.values())
    return {name: off <= 3 * stated + ROUNDING for name, (off, stated) in both.items()}


@pytest.mark.parametrize("size", [DEFAULT_SAMPLE, 1024])
def test_all_rows_of_the_runs_are_within_three_standard_errors(tables: Any, rlvr: Path, size: int) -> None:
    """Of the draw that everybody has, all rows of all methods that are tried; by default in each run."""
    found = {}
    for name, dtype in CASES:
        case = case_of(tables, rlvr, name, dtype)
        found[name, dtype] = within_three(case, tables.sample_tables.library(size))
        print(
            name, dtype, size, {figure: f"{some.mean():.4f}" for figure, some in found[name, dtype].items()}
        )
    for figure in ("relative_error", "expected_relative_error"):
        assert np.concatenate([some[figure] for some in found.values()]).mean() >= 0.98
        assert size != DEFAULT_SAMPLE or all(some[figure].mean() >= 0.98 for some in found.values())
    for figure in ("signal_error", "expected_signal_error"):
        assert found["C", "BF16"][figure].mean() >= 0.98


@pytest.mark.parametrize(("name", "dtype", "draws"), [(*CASES[0], 6), (*CASES[2], 4)])
def test_so_they_are_in_each_run_over_some_draws(
    tables: Any, rlvr: Path, name: str, dtype: str, draws: int
) -> None:
    """The rows of one draw are off together: a run's first draw is one sample of how far, not thousands."""
    case, draw = case_of(tables, rlvr, name, dtype), tables.sample_tables.library(DEFAULT_SAMPLE)
    shares = [within_three(case, draw, seed)["relative_error"].mean() for seed in range(draws)]
    print(name, dtype, " ".join(f"{share:.3f}" for share in shares), f"mean {np.mean(shares):.4f}")
    assert np.mean(shares) >= 0.98


@dataclass(frozen=True)
class Spread:
    """Of one method's rows."""

    found: NDArray[np.float64]
    """(R,): standard deviation over the draws."""
    stated: NDArray[np.float64]
    """(R,): root mean square of the standard errors."""

    @property
    def ratio(self) -> float:
        """Of the root mean squares over all rows."""
        return float(np.sqrt(np.mean(self.stated**2) / np.mean(self.found**2)))

    @property
    def ratio_of_a_row(self) -> float:
        return float(np.median(self.stated / self.found))


def spread(case: Any, draw: Any, method: BacktestCandidate, figure: str) -> Spread:
    """Over `SEEDS` draws of the places, of rows that every draw has."""
    found, stated = [], []
    for seed in range(SEEDS):
        table = case.sampled(draw, seed)
        if seed >= STATED_BY:  # the error alone is told sooner
            table = GramTable(table.steps, table.tensors, table.elements, table.gram, table.clock)
        made = backtest_table(table, [method], dtypes=[case.dtype])
        found.append(figures(made, figure))
        if seed < STATED_BY:
            stated.append(figures(made, f"{figure}_stderr"))
    rows = [row for row in found[0] if all(not np.isnan(one.get(row, np.nan)) for one in found)]
    assert len(rows) > 0.9 * len(found[0])
    errors, stderrs = (np.array([[one[row] for row in rows] for one in some]) for some in (found, stated))
    return Spread(errors.std(axis=0, ddof=1), np.sqrt((stderrs**2).mean(axis=0)))


def check_spread(words: str, one: Spread) -> None:
    print(f"{words}: {one.ratio:.2f}, of a row {one.ratio_of_a_row:.2f}")
    assert 0.7 <= one.ratio <= 1.3
    assert 0.7 <= one.ratio_of_a_row <= 1.3


@pytest.mark.parametrize(
    ("name", "dtype", "method"),
    [(*CASES[case], METHODS[method]) for case, method in SPREADS],
    ids=lambda one: one.name if isinstance(one, BacktestCandidate) else None,
)
def test_the_stated_error_is_the_spread_over_draws(
    tables: Any, rlvr: Path, name: str, dtype: str, method: BacktestCandidate
) -> None:
    case, draw = case_of(tables, rlvr, name, dtype), tables.sample_tables.library(DEFAULT_SAMPLE)
    figure = "signal_error" if dtype == "BF16" else "relative_error"
    check_spread(f"{name} {dtype} {method.name}", spread(case, draw, method, figure))


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("name", ["A", "C"])
def test_the_stated_error_is_the_spread_where_four_stretches_are_read(
    tables: Any, rlvr: Path, name: str
) -> None:
    case, draw = case_of(tables, rlvr, name), tables.sample_tables.library(1024)
    matrices = [count for count in case.table.elements.tolist() if count > 10**4]
    assert len(matrices) == 21
    assert {len(places_of("x", count, 1024).ranges) for count in matrices} == {4}
    check_spread(f"{name} in stretches", spread(case, draw, METHODS[0], "relative_error"))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_predictions_from_a_sample_lose_next_to_nothing(
    tables: Any, rlvr: Path, name: str, dtype: str
) -> None:
    case, measured = case_of(tables, rlvr, name, dtype), tables.sample_tables
    pairs = [*measured.pairs_of(case.table.steps), *TOLD.get(name, ())]
    sampled = case.sampled(measured.library(DEFAULT_SAMPLE))
    exact = measured.real_errors(case.table, case.real, pairs)
    lost = measured.real_errors(sampled, case.real, pairs) - exact
    print(f"{name} {dtype}: {lost.mean():.5f}, at most {lost.max():.5f} of {len(pairs)}")
    assert len(pairs) >= 12
    assert 0.1 < exact.mean() < 1
    # in bf16 the real weights are rounded too, which is most of the error, so that a single one says little
    assert (lost.mean() if dtype == "BF16" else lost.max()) <= 0.005


@pytest.mark.parametrize("name", ["A", "F"])
def test_what_is_read_of_a_run_is_what_was_measured_here(tables: Any, rlvr: Path, name: str) -> None:
    """The inner products of a sample that the package reads, and those that these tests add up."""
    case = case_of(tables, rlvr, name)
    expected = case.sampled(tables.sample_tables.library(DEFAULT_SAMPLE))
    with Run.of(find_trajectory(str(rlvr / f"rlvr-{name}"))) as run:
        found = run.scan_sample(DEFAULT_SAMPLE).gram_table
    assert found.tensors == expected.tensors
    assert found.sample is not None
    assert expected.sample is not None
    assert found.sample.drawn.tolist() == expected.sample.drawn.tolist()
    scale = np.abs(expected.gram).max(axis=(1, 2), keepdims=True)[:, None]
    np.testing.assert_allclose(found.sample.blocks / scale, expected.sample.blocks / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["A", "E2"])
def test_a_backtest_of_a_sample_is_what_was_measured_here(tables: Any, rlvr: Path, name: str) -> None:
    case = case_of(tables, rlvr, name)
    expected = backtest_table(case.sampled(tables.sample_tables.library(1024)), candidates(), dtypes=["F32"])
    found = hubextrap.backtest(str(rlvr / f"rlvr-{name}"), sample=1024)
    assert found.sampled == 1024
    assert [row.method for row in found.rows] == [row.method for row in expected.rows]
    for figure in ("relative_error", "relative_error_stderr", "expected_relative_error"):
        one, other = figures(found, figure), figures(expected, figure)
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-6)
