"""The clock of the learning rate: the time at each step, what it knew when, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_rates import logged, true_times

from hubextrap.clocks import Clock, RateClock, RateHistory, Timeline, parse_schedule, read_trainer_state
from hubextrap.errors import ClockError

COSINE = parse_schedule({"schedule": "cosine", "warmup_steps": 20, "total_steps": 400})
RATES = COSINE.rates(np.arange(401)).tolist()


def history(until: int = 200, every: int = 5, **named: Any) -> RateHistory:
    return logged(RATES, until, every, max_steps=400, **named)


def test_at_a_constant_rate_the_step_is_the_time_to_the_bit() -> None:
    clock: Clock = RateClock(RateHistory((10, 15, 20, 30), (1.1e-6,) * 4, 100, "here"))
    steps = (0, 7, 10, 30)
    times = clock.times(steps)
    assert isinstance(times, Timeline)
    assert (tuple(times), times.steps) == (steps, steps)
    assert clock.time_of(12345) == 12345
    assert clock.step_at(777.0) == 777
    assert clock.known_at(20).time_of(90) == 90
    stated = RateClock(None, parse_schedule({"schedule": "constant"}))
    assert stated.time_of(12345) == 12345
    assert stated.step_at(12345) == 12345


def test_times_are_the_sum_of_the_rates_over_their_peak() -> None:
    clocks = (
        RateClock(history(400)),
        RateClock(history()),
        RateClock(None, COSINE),
        RateClock(history(60), COSINE),
        RateClock(history(10), COSINE),
        RateClock(history(newer=True)),
    )
    for clock in clocks:
        for step in range(0, 401, 20):
            assert clock.time_of(step) == pytest.approx(true_times(RATES)[step], abs=0.6)


def test_times_never_fall_are_on_a_grid_and_lead_back_to_their_steps() -> None:
    for clock in (RateClock(history()), RateClock(history(100), COSINE), RateClock(None, COSINE)):
        times = [clock.time_of(step / 4) for step in range(1601)]
        assert times == sorted(times)
        assert all(float(time * 2**20).is_integer() for time in times)
        for step in range(1, 400):
            found = clock.step_at(clock.time_of(step))
            assert found == pytest.approx(step, abs=1e-6 if step < 390 else 0.1)
        assert clock.step_at(1e4) is None
        assert clock.step_at(0) == 0


def test_behind_a_rate_of_0_it_says_what_can_be_asked() -> None:
    with pytest.raises(ClockError, match=r"0 from step 400 on, .*`target: \{full_rate_steps: N\}`"):
        RateClock(history()).time_of(401)
    least = parse_schedule({"schedule": "polynomial", "total_steps": 100, "min_lr_rate": 0.1})
    clock = RateClock(None, least)
    assert clock.time_of(200) - clock.time_of(100) == pytest.approx(10)
    assert clock.step_at(clock.time_of(200)) == pytest.approx(200)


def test_two_checkpoints_between_which_nothing_was_trained() -> None:
    past_its_end = RateHistory((100, 200, 300, 400), (2e-6, 1e-6, 0.0, 0.0), None, "here")
    with pytest.raises(ClockError, match="step 300 and step 400 have the same time") as caught:
        RateClock(past_its_end).times((100, 300, 400))
    assert caught.value.step == 400


def test_what_was_known_at_an_earlier_step() -> None:
    clock = RateClock(history(400))
    for step in (60, 200):
        then = clock.known_at(step)
        assert then is clock.known_at(step)
        assert then.history == history(step)
        assert then.time_of(400) == RateClock(history(step)).time_of(400)
    assert clock.known_at(400) is clock
    warming_up = clock.known_at(15)
    assert warming_up.times((5, 15)) == pytest.approx((0.625 / 0.75, 5.625 / 0.75), rel=1e-5)
    assert warming_up.step_at(100) is None
    with pytest.raises(ClockError, match="still going on"):
        warming_up.time_of(16)
    stated = RateClock(history(400), COSINE).known_at(15)
    assert stated.time_of(400) == pytest.approx(200, abs=1)


def test_what_stays_unknown_does_not_keep_the_past_from_being_told() -> None:
    noisy = RateHistory((10, 20, 30, 40, 50), (1e-6, 3e-6, 2e-6, 2.5e-6, 1e-6), 100, "here")
    clock = RateClock(noisy)
    assert clock.times((10, 50, 55)) == pytest.approx((5 / 3, 1160 / 36 - 5 / 9 * 0, 33), abs=3)
    with pytest.raises(ClockError, match="state it as"):
        clock.time_of(55)
    assert "the rates to come are not known" in clock.in_words()
    assert clock.as_json()["schedule"] is None


def test_a_stated_schedule_that_the_history_does_not_follow() -> None:
    other = parse_schedule({"schedule": "linear", "warmup_steps": 150, "total_steps": 300})
    with pytest.raises(ClockError, match=r"stated schedule \(linear\) does not fit .* is off by"):
        RateClock(history(), other)
    with pytest.raises(ClockError, match="not known"):
        RateClock(None)


def test_a_file_that_reaches_beyond_the_last_checkpoint_tells_the_future() -> None:
    file = RateHistory((100, 200, 300, 400), (1e-6, 2e-6, 1e-6, 3e-6), None, "rates.csv")
    assert RateClock(file).time_of(400) == pytest.approx((50 + 150 + 150 + 200) / 3, abs=60)
    with pytest.raises(ClockError):
        RateClock(file).known_at(200).time_of(400)


def test_what_it_says_of_itself() -> None:
    clock = RateClock(history())
    assert clock.in_words().startswith(
        "learning rate (trainer_state.json up to step 200; cosine to step 400, misfit "
    )
    said = clock.as_json()
    assert said["schedule"] == {"schedule": "cosine", "warmup_steps": 20, "total_steps": 400}
    assert (said["up_to_step"], said["max_steps"], said["stated"]) == (200, 400, False)
    assert said["peak_rate"] == pytest.approx(3e-6)
    stated = RateClock(None, COSINE)
    assert stated.in_words() == "learning rate (cosine to step 400, as stated)"
    assert stated.as_json() == {"name": "learning_rate", "schedule": COSINE.as_json(), "stated": True}


@pytest.mark.slow
def test_each_origin_of_a_real_run_foretells_its_later_times() -> None:
    root = os.environ.get("HUBEXTRAP_DATA")
    if not root:
        pytest.skip("set HUBEXTRAP_DATA to the folder of the full runs")
    files = {step: Path(root, "rlvr-E2", f"step_{step}", "trainer_state.json") for step in range(20, 401, 20)}
    known = {step: read_trainer_state(file.read_bytes(), file.name) for step, file in files.items()}
    later = RateClock(known[400])
    for step in range(60, 401, 20):
        clock = RateClock(known[step])
        assert clock.times(range(0, step + 1, 20)) == pytest.approx(later.times(range(0, step + 1, 20)))
        for ahead in range(step, 401, 20):
            assert clock.time_of(ahead) == pytest.approx(later.time_of(ahead), rel=0.005)
            assert later.known_at(step).time_of(ahead) == clock.time_of(ahead)
