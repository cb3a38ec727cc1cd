"""The simulation of docs/scaling.md, by cases that can be worked out by hand."""

from __future__ import annotations

import math
from runpy import run_path
from typing import Any

import pytest
from harness import ROOT


@pytest.fixture(scope="module")
def simulation() -> dict[str, Any]:
    return run_path(str(ROOT / "benchmarks" / "simulation.py"))


@pytest.fixture(scope="module")
def simulate(simulation: dict[str, Any]) -> Any:
    return simulation["simulate"]


@pytest.mark.parametrize(
    ("units", "workers", "seconds"),
    [
        (314, 1, 3140),
        (314, 64, 50),
        (314, 128, 30),
        (314, 157, 20),
        (314, 313, 20),
        (314, 314, 10),
        (3, 9, 10),
    ],
)
def test_whole_rounds_count(simulate: Any, units: int, workers: int, seconds: float) -> None:
    assert simulate(units, 10.0, workers).seconds == seconds
    assert simulate(units, 10.0, workers, begins=7.0, start=2.0).seconds == seconds + 9


def test_a_lost_worker_costs_what_it_had_done_and_its_start(simulate: Any) -> None:
    # Alone: lost after 4 of 10 s, back after 3, and then two whole units.
    lives = iter([4.0, math.inf, math.inf])
    found = simulate(2, 10.0, 1, start=3.0, lifetime=lambda: next(lives))
    assert (found.seconds, found.losses, found.lost) == (3 + 4 + 3 + 20, 1, 4.0)


def test_an_idle_worker_takes_over_at_once(simulate: Any) -> None:
    # Two units, three workers: the first is lost at 4, and the third has the unit done at 14.
    lives = iter([4.0, math.inf, math.inf])
    found = simulate(2, 10.0, 3, lifetime=lambda: next(lives))
    assert (found.seconds, found.losses, found.lost) == (14.0, 1, 4.0)


def test_a_busy_one_takes_over_when_it_is_free(simulate: Any) -> None:
    # Both lost at 4 and 8 and back at 104 and 108; three units are left then.
    lives = iter([4.0, 8.0, math.inf, math.inf, math.inf])
    found = simulate(3, 10.0, 2, start=100.0, lifetime=lambda: next(lives))
    assert (found.seconds, found.losses, found.lost) == (100 + 104 + 20, 2, 12.0)


def test_windows_are_fixed_and_who_asks_for_more_waits(simulation: dict[str, Any]) -> None:
    quota = simulation["Quota"](10)
    assert [quota.take(5.0, count) for count in (4, 6, 1)] == [5.0, 5.0, 300.0]
    assert quota.take(20.0, 9) == 300.0  # and the window is full
    assert quota.take(310.0, 21) == 1200.0  # 10 from 600 on, 10 from 900 on, 1 from 1200 on
    assert quota.take(2500.0, 10) == 2500.0
    assert quota.take(2500.0, 0) == 2500.0


def test_workers_wait_for_the_quota(simulation: dict[str, Any], simulate: Any) -> None:
    # 4 requests a unit, 10 a window: two units begin at once; the third has its last two requests at 300.
    asks = [(simulation["Quota"](10), 4), (simulation["Quota"](1000), 1)]
    found = simulate(4, 10.0, 4, asks=asks)
    assert (found.seconds, found.waited) == (310.0, 600.0)


def test_workers_that_join_ask_too(simulation: dict[str, Any], simulate: Any) -> None:
    # Two of three join at 0 and do the units one after the other; the third may at 300, which is too late.
    found = simulate(4, 10.0, 3, joining=[(simulation["Quota"](2), 1)])
    assert (found.seconds, found.waited) == (20.0, 300.0)


def test_what_binds_a_unit(simulation: dict[str, Any]) -> None:
    rates = simulation["Rates"](
        0.25, 0.25, 0.5, 0.05, sums=0.2, write=1.0, upload=0.75, opening=0.0, start=0.0, other=0.25
    )
    work = simulation["Work"](read=64.0, written=4.0, request=0.008)
    worker = simulation["Worker"](cores=2, card=2.0, first_byte=0.046)
    assert simulation["reading"](work, rates, worker) == pytest.approx(
        # 8,000 requests, 8 at a time, of 46 + 4 ms; 64 GB of 1.5 s and 4 of 1 s on two cores
        {"network card": 32.0, "requests in flight": 50.0, "processor": 50.0}
    )
    assert simulation["uploading"](work, rates, worker) == pytest.approx(4.0)  # by the processor: 1 s/GB
    slow = simulation["Worker"](cores=2, card=0.5, first_byte=0.0)
    assert simulation["unit_seconds"](work, rates, slow) == pytest.approx(128 + 8)
