"""The backtest's figures: what brute force finds, what `calibrated` promises, and nothing from the future."""

from __future__ import annotations

from pathlib import Path

import backtest_runs as runs
import numpy as np
import pytest
from numpy.typing import NDArray

from hubextrap.errors import MethodError
from hubextrap.methods import Rule, coefficients, rehearse
from hubextrap.methods.rehearsal import most_rehearsals
from hubextrap.statistics import (
    HORIZONS,
    Backtest,
    BacktestCandidate,
    GramTable,
    backtest_table,
    candidates,
    horizon_classes,
    horizon_means,
    judge_run,
    pair_counts,
)


@pytest.fixture(scope="module")
def demo_table() -> GramTable:
    return runs.table_of(runs.DEMO)


@pytest.fixture(scope="module")
def demo(demo_table: GramTable) -> Backtest:
    return backtest_table(demo_table)


def brute_force(
    weights: dict[str, NDArray[np.float64]], steps: tuple[int, ...], rule: Rule, last: int, target: int
) -> float:
    """Predict every tensor from its checkpoints up to ``last``, and measure against the real one."""
    error = real = 0.0
    for values in weights.values():
        seen = values[: last + 1]
        gram = (seen - seen[0]) @ (seen - seen[0]).T if rule.needs_gram_matrix else None
        c = coefficients(
            rule.method,
            steps[: last + 1],
            steps[target],
            rule.parameters,
            damping=rule.damping,
            gram_matrix=gram,
        )
        # as differences to the last checkpoint, so that float64 keeps the digits that the comparison needs
        predicted = c @ (seen - seen[-1])
        error += float(((predicted - (values[target] - seen[-1])) ** 2).sum())
        real += float(((values[target] - seen[-1]) ** 2).sum())
    return float((error / real) ** 0.5)


def check_against_brute_force(backtest: Backtest, folder: Path, every: int) -> None:
    steps, weights = runs.weights_of(folder)
    rules = {candidate.name: candidate.rules[0] for candidate in candidates()}
    place = {step: index for index, step in enumerate(steps)}
    for row in backtest.rows[::every]:
        expected = brute_force(
            weights, steps, rules[row.method], place[row.last_step], place[row.target_step]
        )
        # the two Gram matrices are summed otherwise: beside its edge, a coefficient may fall into the next
        # cell of the grid
        fitted = row.method in ("calibrated", "low_rank")
        assert row.relative_error == pytest.approx(expected, rel=1e-5 if fitted else 1e-6), row


def test_figures_are_those_of_brute_force(demo: Backtest) -> None:
    check_against_brute_force(demo, runs.DEMO, every=3)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["rlvr-A", "rlvr-C"])
def test_figures_are_those_of_brute_force_on_full_runs(run: str) -> None:
    folder = runs.full_run(run)
    check_against_brute_force(backtest_table(runs.table_of(folder)), folder, every=7)


@pytest.mark.slow
def test_some_tensors_at_a_time_come_to_the_same(
    demo: Backtest, demo_table: GramTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rules share the tensors out, and rounding is set apart."""
    tried = [
        *candidates(),
        BacktestCandidate("two rules", (Rule(("*norm*",), "persistence"), Rule(("*",), "ema"))),
    ]
    rounded = backtest_table(demo_table, tried, dtypes=["BF16"])
    monkeypatch.setattr("hubextrap.statistics.backtesting.FIT_MEMORY", 1)  # one at a time
    for whole, parts in (
        (demo, backtest_table(demo_table)),
        (rounded, backtest_table(demo_table, tried, dtypes=["BF16"])),
    ):
        assert len(whole.rows) == len(parts.rows)
        for row, same in zip(whole.rows, parts.rows, strict=True):
            assert (row.method, row.last_step, row.target_step) == (
                same.method,
                same.last_step,
                same.target_step,
            )
            assert same.error == pytest.approx(row.error, rel=1e-9)
            assert same.expected_error == pytest.approx(row.expected_error, abs=2**-19)


def test_no_prediction_has_more_rehearsals_than_are_counted() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 12, 20):
        steps = tuple(int(step) for step in np.cumsum(rng.integers(1, 50, count)))
        found = [
            len(rehearse(steps[: last + 1], steps[target]))
            for last in range(count)
            for target in range(last + 1, count)
        ]
        assert max(found, default=0) <= most_rehearsals(steps) <= count * count // 2


def test_every_method_origin_and_target_has_a_row(demo: Backtest, demo_table: GramTable) -> None:
    steps = demo_table.steps
    assert set(demo.methods) == {candidate.name for candidate in candidates()}
    plain = {(row.last_step, row.target_step) for row in demo.rows if row.method == "least_squares"}
    assert plain == {(a, b) for a in steps[1:-1] for b in steps if b > a}
    assert all(row.relative_error == pytest.approx(1.0) for row in demo.rows if row.method == "persistence")
    rows = demo.as_rows()
    assert {"method", "last_step", "target_step", "relative_error", "expected_relative_error"} <= set(rows[0])
    assert "signal_error" not in rows[0]


def test_a_row_knows_nothing_of_what_came_later(demo: Backtest, demo_table: GramTable) -> None:
    """Cut the run: what is said at an origin stays the same, to the last bit of its expectation."""
    until = 5
    cut = GramTable(
        demo_table.steps[:until],
        demo_table.tensors,
        demo_table.elements,
        demo_table.gram[:, :until, :until],
    )
    before = {(row.method, row.last_step, row.target_step): row for row in demo.rows}
    for row in backtest_table(cut).rows:
        same = before[row.method, row.last_step, row.target_step]
        assert row.relative_error == pytest.approx(same.relative_error, rel=1e-12)
        if row.expected_relative_error is None:
            assert same.expected_relative_error is None
        else:
            assert row.expected_relative_error == pytest.approx(same.expected_relative_error, rel=1e-9)


def test_rules_for_some_tensors_add_up(demo_table: GramTable) -> None:
    """A recipe's rules are judged over all tensors together."""
    half = Rule(("*mlp*",), "two_point", {"base_step": 100})
    rest = Rule(("*",), "persistence", {})
    found = backtest_table(demo_table, [BacktestCandidate("both", (half, rest))])
    steps, weights = runs.weights_of(runs.DEMO)
    row = next(row for row in found.rows if (row.last_step, row.target_step) == (200, 400))
    error = real = 0.0
    for name, values in weights.items():
        motion = values[-1] - values[steps.index(200)]
        step = values[steps.index(200)] - values[steps.index(100)]
        predicted = 2 * step if "mlp" in name else 0 * step
        error, real = error + float(((predicted - motion) ** 2).sum()), real + float((motion**2).sum())
    assert row.relative_error == pytest.approx((error / real) ** 0.5, rel=1e-9)


def test_verdict_of_the_demo(demo: Backtest) -> None:
    verdict = judge_run(demo)
    near = {
        name: np.mean([row.error for row in rows if row.horizon <= 1])
        for name, rows in demo.shared_rows().items()
    }
    assert verdict.method is not None
    assert near[verdict.method] == min(near.values())
    assert near["calibrated"] < 0.45 < near["two_point"]
    assert verdict.reach == 1.0
    assert verdict.rehearsals.worse == 0
    means = {entry.method: entry for entry in horizon_means(demo)}
    assert means["calibrated"].means[0] < 0.4 < means["two_point"].means[0]


@pytest.mark.parametrize("first", [0, 1000])
def test_reach_is_a_horizon_and_counts_from_the_first_checkpoint(demo_table: GramTable, first: int) -> None:
    steps = tuple(first + step for step in demo_table.steps)
    shifted = GramTable(steps, demo_table.tensors, demo_table.elements, demo_table.gram)
    found = backtest_table(shifted)
    verdict = judge_run(found)
    assert verdict.reach == 1.0
    assert verdict.reach_step == first + 800
    titles = horizon_classes(found)
    ends = [f"to {h} (step {first + s})" for h, s in ((0.25, 500), (0.5, 600), (1, 800))]
    assert titles == (*ends, "farther")
    assert f"Trust it up to step {first + 800} (horizon 1); " in " ".join(verdict.sentences)


def test_a_horizon_on_an_end_is_in_the_class_that_ends_there() -> None:
    times = np.array([0, 3, 30, 33, 36, 39], dtype=np.float64)
    table = GramTable(
        (7, 10, 37, 40, 43, 46), ("w",), np.array([5]), np.outer(times, times)[None] + np.eye(6)
    )
    found = backtest_table(table, [BacktestCandidate.of("persistence")])
    ends = (*HORIZONS, np.inf)
    exact = [
        sum(
            low * (row.last_step - 7) < row.target_step - row.last_step <= high * (row.last_step - 7)
            for row in found.rows
        )
        for low, high in zip((-1, *HORIZONS), ends, strict=True)
    ]
    assert pair_counts(found) == tuple(exact)


def test_a_run_that_does_not_move_has_no_figures() -> None:
    table = GramTable((0, 1, 2, 3), ("w",), np.array([5]), np.zeros((1, 4, 4)))
    found = backtest_table(table)
    assert found.rows == ()
    assert judge_run(found).method is None


def test_where_nothing_helps_the_verdict_says_so() -> None:
    """A random walk: the last checkpoint is the best guess of the next."""
    walk = np.cumsum(np.random.default_rng(0).normal(size=(10, 4000)), axis=0)
    walk -= walk[0]
    found = backtest_table(GramTable(tuple(range(10)), ("w",), np.array([4000]), (walk @ walk.T)[None]))
    assert not found.rounded
    verdict = judge_run(found)
    assert verdict.reach is None
    assert verdict.method is None or verdict.method.startswith("calibrated")
    expected = [row.expected_relative_error for row in found.rows if row.method == "calibrated"]
    assert np.mean([value for value in expected if value is not None]) > 0.95


@pytest.mark.parametrize(("run", "limit"), [("rlvr-A", 0.62), ("rlvr-C", 0.36)])
def test_calibrated_keeps_its_promise(run: str, limit: float) -> None:
    table = runs.table_of(runs.full_run(run))
    found = backtest_table(table, [BacktestCandidate.of("calibrated")])
    rows = runs.protocol(list(found.rows), table.steps)
    assert len(rows) == {"rlvr-A": 12, "rlvr-C": 36}[run]
    errors = [row.relative_error for row in rows]
    expected = [row.expected_relative_error for row in rows]
    assert np.mean(errors) <= limit
    assert max(errors) < 1
    assert abs(np.mean(expected) - np.mean(errors)) <= 0.08


def test_rounding_to_bfloat16_is_seen_through() -> None:
    """C drowns in it and A does not; the coefficients stay good on both, judged by the float32 weights."""
    for run, rounded, limit in (("rlvr-A", False, 0.62), ("rlvr-C", True, 0.36)):
        folder = runs.full_run(run)
        cast, exact = runs.table_of(folder, "bfloat16"), runs.table_of(folder)
        found = backtest_table(cast, [BacktestCandidate.of("calibrated")], dtypes=["BF16"])
        assert found.rounded == rounded
        errors = []
        for row in runs.protocol(list(found.rows), cast.steps):
            last, target = cast.steps.index(row.last_step), cast.steps.index(row.target_step)
            error = real = 0.0
            for rough, fine in zip(cast.gram, exact.gram, strict=True):
                count = last + 1
                c = np.zeros(len(cast.steps))
                c[:count] = coefficients(
                    "calibrated", cast.steps[:count], row.target_step, gram_matrix=rough[:count, :count]
                )
                motion = np.zeros(len(cast.steps))
                c[target] -= 1
                motion[[last, target]] = -1, 1
                error, real = error + c @ fine @ c, real + motion @ fine @ motion
            errors.append((error / real) ** 0.5)
            if rounded:
                assert row.signal_error is not None
                assert row.signal_error < row.relative_error
        assert np.mean(errors) <= limit


def test_a_candidate_that_cannot_serve_has_no_row(demo_table: GramTable) -> None:
    found = backtest_table(demo_table, [BacktestCandidate.of("two_point", base_step=100)])
    assert {row.last_step for row in found.rows} == {120, 160, 200}
    with pytest.raises(MethodError, match="there is no merge method nonsense"):
        backtest_table(demo_table, [BacktestCandidate.of("nonsense")])
