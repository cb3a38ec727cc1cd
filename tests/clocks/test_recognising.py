"""A schedule is recognised from half its history to within 2% of the time at its end, or it is refused."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
from learning_rates import logged, true_times

from hubextrap.clocks import RateClock, RateHistory, Schedule, parse_schedule, recognise
from hubextrap.errors import ClockError


def schedule_of(name: str, warmup: int, total: int, named: dict[str, Any]) -> Schedule:
    given = {"schedule": name, **named}
    if warmup:
        given["warmup_steps"] = warmup
    if "decay" in given:
        given["num_decay_steps"] = int(given.pop("decay") * total)
    if name not in ("constant", "constant_with_warmup", "inverse_sqrt"):
        given["total_steps"] = total
    return parse_schedule(given)


PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("constant_with_warmup", {}),
    ("linear", {}),
    ("cosine", {}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_restarts", {"num_cycles": 5}),
    ("polynomial", {"power": 0.5, "min_lr_rate": 0.0}),
    ("polynomial", {"power": 1.0, "min_lr_rate": 0.1}),
    ("polynomial", {"power": 2.0, "min_lr_rate": 0.03}),
    ("polynomial", {"power": 3.0, "min_lr_rate": 0.1}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 100}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
]


@pytest.mark.parametrize(("name", "named"), PLAIN)
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("every", [1, 5, 10])
def test_the_plain_ones_are_recognised_from_half_the_history(
    name: str, named: dict[str, Any], newer: bool, every: int
) -> None:
    total = 400
    schedule = schedule_of(name, 40, total, named)
    rates = schedule.rates(np.arange(total + 1)).tolist()
    found = recognise(logged(rates, 200, every, newer=newer, max_steps=total))
    assert found.schedule.name == name
    assert found.misfit < 1e-6
    assert found.peak == pytest.approx(3e-6, rel=1e-3)
    clock = RateClock(logged(rates, 200, every, newer=newer, max_steps=total))
    for step in (200, 300, 400):
        assert clock.time_of(step) == pytest.approx(true_times(rates)[step], rel=0.01, abs=1)


def test_default_runs_of_transformers_are_recognised_without_a_warm_up() -> None:
    for name in ("linear", "cosine", "constant"):
        rates = schedule_of(name, 0, 100, {}).rates(np.arange(101)).tolist()
        for every in (1, 5, 10):
            assert recognise(logged(rates, 50, every, max_steps=100)).schedule.name == name


def test_a_falling_tail_after_a_plateau_is_seen_and_a_plateau_says_nothing_of_it() -> None:
    schedule = schedule_of("warmup_stable_decay", 20, 400, {"decay": 0.5, "min_lr_ratio": 0.1})
    rates = schedule.rates(np.arange(401)).tolist()
    found = recognise(logged(rates, 300, 5, max_steps=400)).schedule
    assert (found.name, found.warmup_steps, found["num_decay_steps"]) == (schedule.name, 20, 200)
    assert found["min_lr_ratio"] == pytest.approx(0.1)
    assert recognise(logged(rates, 180, 5, max_steps=400)).schedule.name == "constant_with_warmup"


def refused(history: RateHistory) -> str:
    with pytest.raises(ClockError) as caught:
        recognise(history)
    said = str(caught.value)
    assert "`clock: {schedule: cosine, warmup_steps: 20, total_steps: 400}`" in said
    assert "give a file of rates" in said
    return said


def test_what_cannot_be_known_is_refused_with_what_to_state() -> None:
    cosine = schedule_of("cosine", 40, 400, {}).rates(np.arange(401)).tolist()
    assert "0 learning rates up to step 0 are too few" in refused(RateHistory((), ()))
    assert "warm-up is still going on at step 40" in refused(logged(cosine, 40, 5, max_steps=400))
    assert "too few" in refused(logged(cosine, 50, 5, max_steps=400))
    assert "no max_steps" in refused(logged(cosine, 200, 5))
    noisy = [rate * (1 + 0.01 * (-1) ** step) for step, rate in enumerate(cosine)]
    assert "none of the known schedules fits" in refused(logged(noisy, 200, 5, max_steps=400))
    assert "equally well" in refused(logged(cosine, 75, 5, digits=4, max_steps=400))


@pytest.mark.slow
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    "name", ["constant_with_warmup", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"]
)
def test_a_warm_up_that_ended_between_two_entries_is_right_or_refused(name: str, newer: bool) -> None:
    known = 0
    for warmup, every in itertools.product((1, 3, 12, 40), (25, 50)):
        named = {"decay": 0.8} if name == "warmup_stable_decay" else {}
        rates = schedule_of(name, warmup, 500, named).rates(np.arange(501)).tolist()
        history = logged(rates, 300, every, newer=newer, max_steps=500, first=True)
        try:
            found = RateClock(history).time_of(500)
        except ClockError:
            continue
        known += 1
        assert found == pytest.approx(true_times(rates)[500], rel=0.02), (warmup, every)
    assert known or name == "inverse_sqrt"


def test_the_end_of_a_straight_warm_up_is_known_between_entries() -> None:
    rates = schedule_of("constant_with_warmup", 45, 400, {}).rates(np.arange(401)).tolist()
    found = recognise(logged(rates, 200, 20, max_steps=400))
    assert (found.schedule.name, found.schedule.warmup_steps) == ("constant_with_warmup", 45)
    with pytest.raises(ClockError, match="the warm-up ended somewhere between step 2 and step 50"):
        recognise(logged(rates, 400, 50, newer=True, first=True, max_steps=400))


@pytest.mark.parametrize("newer", [False, True])
def test_a_warm_up_that_ends_where_the_first_entry_is_adds_no_time(newer: bool) -> None:
    for every in (100, 200, 300):
        rates = schedule_of("inverse_sqrt", every, 3000, {}).rates(np.arange(3001)).tolist()
        try:
            found = RateClock(logged(rates, 1500, every, newer=newer, max_steps=3000)).time_of(3000)
        except ClockError:
            continue
        assert found == pytest.approx(true_times(rates)[3000], rel=0.02), every


def test_without_max_steps_those_that_have_no_end_are_recognised() -> None:
    for name in ("constant_with_warmup", "inverse_sqrt"):
        rates = schedule_of(name, 40, 400, {}).rates(np.arange(401)).tolist()
        found = recognise(logged(rates, 200, 5)).schedule
        assert (found.name, found.warmup_steps) == (name, 40)


def test_ten_thousand_entries_take_no_time() -> None:
    rates = schedule_of("cosine", 300, 20_000, {}).rates(np.arange(20_001)).tolist()
    history = logged(rates, 10_000, 1, max_steps=20_000)
    began = time.process_time()
    recognise(history)
    assert time.process_time() - began < 1.5  # 0.1 on a machine that does nothing else


SWEPT = [
    *PLAIN,
    ("constant", {}),
    ("cosine_with_restarts", {"num_cycles": 1}),
    ("cosine_with_restarts", {"num_cycles": 4}),
    ("cosine", {"num_cycles": 1.0}),
    ("cosine", {"num_cycles": 0.45}),
    ("polynomial", {"power": 1.37, "min_lr_rate": 0.05}),
    ("inverse_sqrt", {"timescale": 37}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.01}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 1.0}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "named"), SWEPT)
def test_never_wrong_without_a_refusal(name: str, named: dict[str, Any]) -> None:
    cases = list(
        itertools.product(
            (50, 100, 400, 2000),
            (0, 0.03, 0.1, 0.3),
            (1, 5, 10, 50),
            (0.25, 0.5, 0.75),
            (False, True),
            (None, 4),
            (False, True),
        )
    )
    known = 0
    for total, part, every, share, newer, digits, first in random.Random(f"{name} {named}").sample(cases, 60):
        warmup = 0 if name == "constant" else round(part * total)
        waves = named.get("num_cycles", 0.5 if name.startswith("cosine_w") else 1)
        cycle = (total - warmup) / (2 * waves if name == "cosine" else max(waves, 1))
        if cycle < 3 * every or (name == "constant_with_warmup" and warmup <= every):
            continue  # nothing that was logged shows it
        schedule = schedule_of(name, warmup, total, named)
        rates = schedule.rates(np.arange(total + 1)).tolist()
        history = logged(
            rates, int(share * total), every, newer=newer, digits=digits, max_steps=total, first=first
        )
        try:
            found = RateClock(history).time_of(total)
        except ClockError:
            continue
        known += 1
        end = true_times(rates)[total]
        assert abs(found - end) <= max(0.02 * end, 1.6), (schedule, every, share, newer, digits, first)
    assert known > 5
