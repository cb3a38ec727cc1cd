"""Script and Python agree to 1e-6: coefficients, displacements, expected errors and errors found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, Browser
from numpy.typing import NDArray

from hubextrap.clocks import STEPS, Clock, ClockChoice, RateClock, RateHistory
from hubextrap.errors import MethodError
from hubextrap.methods.rules import FirstMatch
from hubextrap.reporting.live import LIVE, live_data, small_table
from hubextrap.scans import Scan
from hubextrap.statistics import GramTable, backtest_table, candidates, expect_of_last, judge_run
from hubextrap.statistics.past import pasts

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
TOLERANCE = 1e-6
CANDIDATES = {candidate.name: candidate for candidate in candidates()}

# For each method, clock and origin, targets near and far: what the page would say.
ASK = """(() => {
  const data = %s;
  const past = new PastOfRun(data);
  const asked = [];
  data.clocks.forEach((clock, number) => data.methods.forEach((method) => {
    for (let origin = 1; origin < data.steps.length; origin++) {
      const view = past.view(number, origin);
      if (!view) continue;
      const last = data.steps[origin];
      const there = clock.origins[origin].targets ?? null;
      const near = [1.1, 1.5, 2, 2.8].map((share) => Math.round(last + (share - 1) * (last - data.steps[0])));
      const steps = there ? there.map(([step]) => step).filter((_, at) => at %% 9 === 0)
        : [...near, ...data.steps.slice(origin + 1)];
      for (const step of new Set(steps.filter((one) => one > last))) {
        const time = there ? there.find(([one]) => one === step)[1] : step;
        const place = data.steps.indexOf(step);
        const moved = past.displacement(method, view, time);
        const rows = past.coefficients(method, view, time);
        asked.push({
          method: method.name, clock: number, origin, step, time, ...past.expected(method, view, time),
          moved: moved && past.length(view, moved), coefficients: rows && rows.map((row) => [...row]),
          found: place > origin ? past.found(method, view, place, time) : null,
        });
      }
    }
  }));
  return asked;
})()"""


def synthetic(scan: Scan, steps: Sequence[int], weights: NDArray[np.float64], dtype: str) -> Scan:
    """A scan as of these weights, (N, K, n)."""
    deltas = weights - weights[:, :1]
    names = tuple(f"w{number}" for number in range(len(weights)))
    elements = np.full(len(weights), weights.shape[2])
    table = GramTable(tuple(steps), names, elements, deltas @ deltas.transpose(0, 2, 1))
    read = tuple(replace(scan.checkpoints[0], step=step, dtype=dtype) for step in steps)
    return replace(scan, gram_table=table, checkpoints=read, rates=None)


def moving(steps: Sequence[int], noise: float) -> NDArray[np.float64]:
    """Four tensors that bend, wander a little, and are stored with white noise."""
    rng = np.random.default_rng(5)
    times = np.array(steps, dtype=np.float64)[None, :, None] / steps[-1]
    line, bend = rng.standard_normal((2, 4, 1, 60))
    walk = np.cumsum(0.08 * rng.standard_normal((4, len(steps), 60)), axis=1)
    return line * times + 0.4 * bend * times**2 + walk + noise * rng.standard_normal(walk.shape)


IRREGULAR = (0, 10, 25, 30, 50, 65, 100, 120, 150)


def bundled(scan: Scan) -> tuple[Scan, list[tuple[Clock, ClockChoice | None]]]:
    return scan, [(STEPS, None)]


def in_bf16(scan: Scan) -> tuple[Scan, list[tuple[Clock, ClockChoice | None]]]:
    return synthetic(scan, IRREGULAR, moving(IRREGULAR, 0.35), "BF16"), [(STEPS, None)]


def on_a_clock(scan: Scan) -> tuple[Scan, list[tuple[Clock, ClockChoice | None]]]:
    """The learning rate falls along a line from a warm-up on, and checkpoints lie irregularly."""
    logged = tuple(range(2, IRREGULAR[-1] + 1, 2))
    rates = tuple(1e-6 * min(step / 20, (300 - step) / 280) for step in logged)
    clock = RateClock(RateHistory(logged, rates, max_steps=300))
    return synthetic(scan, IRREGULAR, moving(IRREGULAR, 0.05), "F32"), [
        (clock, "learning_rate"),
        (STEPS, "steps"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "of",
    [
        pytest.param(bundled, marks=pytest.mark.slow),
        in_bf16,
        pytest.param(on_a_clock, marks=pytest.mark.slow),
    ],
)
def test_script_and_python_agree(of: Any, scan: Scan, page: Path, browser: Browser) -> None:
    browser.open(page)  # for its scripts
    run, clocks = of(scan)
    small = small_table(run.gram_table, 1_000_000)
    assert small.notes == ()
    assert small.table is run.gram_table
    backtests = [backtest_table(replace(small.table, clock=clock), dtypes=run.dtypes) for clock, _ in clocks]
    data = live_data(run, small, clocks, backtests[0], [], judge_run(backtests[0]), ())
    assert data["rounded"] == (of is in_bf16)
    assert {method["method"] for method in data["methods"]} == LIVE - {"persistence"}
    asked = browser.run(ASK % json.dumps(data))
    assert len(asked) > 300
    seen = {
        (number, origin): replace(small.table, clock=clock).seen_at(origin)
        for number, (clock, _) in enumerate(clocks)
        for origin in range(1, len(small.table.steps))
    }
    rows = [{(row.method, row.last_step, row.target_step): row for row in one.rows} for one in backtests]
    counts = dict.fromkeys(("expected", "unknown", "coefficients", "found"), 0)
    for one in asked:
        table, rules = seen[one["clock"], one["origin"]], CANDIDATES[one["method"]].rules
        clock = clocks[one["clock"]][0].known_at(table.steps[-1])
        assert one["time"] == clock.time_of(one["step"])
        expected = expect_of_last(rules, table, one["time"], data["rounded"])
        assert close(one["error"], expected.relative_error), one
        assert close(one["total"], expected.total), one
        coefficients, moved = by_python(rules, table, one["time"])
        assert (one["coefficients"] is None) == (coefficients is None), one
        if coefficients is not None:
            given = np.broadcast_to(one["coefficients"], coefficients.shape)
            assert np.abs(given - coefficients).max() <= TOLERANCE, one
            assert one["moved"] == pytest.approx(moved, rel=TOLERANCE), one
            counts["coefficients"] += 1
        counts["unknown" if one["error"] is None else "expected"] += 1
        row = rows[one["clock"]].get((one["method"], table.steps[-1], one["step"]))
        assert row is None or close(one["found"], row.error), one
        counts["found"] += row is not None
    assert all(counts.values()), counts


def close(ours: float | None, theirs: float | None) -> bool:
    return ours is theirs is None or (
        ours is not None and theirs is not None and abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))
    )


def by_python(rules: Any, table: GramTable, time: float) -> tuple[NDArray[np.float64] | None, float | None]:
    """Coefficients (N or 1, K) as a merge has them, and how far it lies from the last checkpoint."""
    (rule,), last = rules, len(table.steps) - 1
    try:
        gram = table.gram if rule.needs_gram_matrix else None
        found = rule.coefficients(table.times, [time], gram).reshape(-1, last + 1)
    except MethodError:
        return None, None
    (past,) = pasts(FirstMatch(rules), table)
    moved = past.displacement(last, time)
    assert moved is not None
    both = np.broadcast_to(moved, (len(table.gram), last + 1))
    return found, float(np.einsum("nk,nkl,nl->", both, table.gram, both) ** 0.5)


@pytest.mark.slow
def test_a_page_of_many_tensors_keeps_the_sum(scan: Scan, page: Path, browser: Browser) -> None:
    """Where not all tensors fit, the least are one: what follows from the sum is as exact as before."""
    browser.open(page)
    weights = np.concatenate([moving(IRREGULAR, 0.05) * scale for scale in (1, 0.3, 0.1, 0.03)])
    run = synthetic(scan, IRREGULAR, weights, "F32")
    small = small_table(run.gram_table, 45 * 8 * 4 // 3 * 6)
    assert len(small.table.tensors) == 6
    assert "takes the 11 tensors that moved least as one" in small.notes[0]
    assert small.table.total() == pytest.approx(run.gram_table.total(), rel=1e-12)
    assert small.table.elements.sum() == run.gram_table.elements.sum()
    backtest = backtest_table(run.gram_table)
    data = live_data(run, small, [(STEPS, None)], backtest, [], judge_run(backtest), ())
    found = {
        (one["method"], one["step"]): one["error"]
        for one in browser.run(ASK % json.dumps(data))
        if one["origin"] == len(IRREGULAR) - 1
    }
    for (method, step), error in found.items():
        whole = expect_of_last(CANDIDATES[method].rules, run.gram_table, step, False).relative_error
        exact = not CANDIDATES[method].rules[0].needs_gram_matrix
        assert error == pytest.approx(whole, rel=TOLERANCE if exact else 0.05)


def test_many_checkpoints_are_thinned(scan: Scan) -> None:
    steps = tuple(range(0, 1500, 10))
    run = synthetic(scan, steps, moving(steps, 0.05), "F32")
    small = small_table(run.gram_table, 200_000)
    assert small.table.steps[0] == 0
    assert small.table.steps[-1] == 1490
    assert len(small.table.steps) == 100
    assert "takes 100 of the 150 checkpoints" in small.notes[0]
    places = [steps.index(step) for step in small.table.steps]
    assert small.table.total() == pytest.approx(run.gram_table.total()[np.ix_(places, places)], rel=1e-9)
