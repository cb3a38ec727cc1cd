"""Each schedule is transformers' own, at every step; what a recipe states wrongly is named by its key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learning_rates import transformers_rates

from hubextrap.clocks import SCHEDULES, parse_schedule, schedule_problems
from hubextrap.errors import ClockError

TOTAL = 50
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("constant", 0, {}),
    ("constant_with_warmup", 7, {}),
    ("linear", 0, {}),
    ("linear", 7, {}),
    ("cosine", 0, {}),
    ("cosine", 7, {"num_cycles": 1.3}),
    ("cosine_with_restarts", 0, {}),
    ("cosine_with_restarts", 7, {"num_cycles": 3}),
    ("polynomial", 0, {"min_lr_rate": 0.1}),
    ("polynomial", 7, {"power": 2.0, "min_lr_rate": 0.0}),
    ("polynomial", 7, {"power": 0.5, "min_lr_rate": 0.25}),
    ("inverse_sqrt", 0, {}),
    ("inverse_sqrt", 7, {}),
    ("inverse_sqrt", 7, {"timescale": 30}),
    ("cosine_with_min_lr", 7, {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", 0, {"min_lr_rate": 0.0, "num_cycles": 1.0}),
    ("cosine_warmup_with_min_lr", 0, {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", 7, {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", 7, {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", 0, {"num_decay_steps": 20}),
    *(
        (
            "warmup_stable_decay",
            8,
            {"num_decay_steps": 20, "warmup_type": one, "decay_type": other, "min_lr_ratio": 0.2},
        )
        for one in ("linear", "cosine", "1-sqrt")
        for other in ("linear", "cosine", "1-sqrt")
    ),
]


@pytest.mark.parametrize(("name", "warmup", "named"), CASES)
def test_each_is_as_transformers_has_it_beyond_its_end_too(
    name: str, warmup: int, named: dict[str, Any]
) -> None:
    given = {"schedule": name, **named}
    if warmup:
        given["warmup_steps"] = warmup
    if not schedule_problems(given | {"total_steps": TOTAL}):
        given["total_steps"] = TOTAL
    schedule = parse_schedule(given)
    theirs = transformers_rates(name, warmup, TOTAL, 3 * TOTAL, **named)
    np.testing.assert_allclose(schedule.rates(np.arange(3 * TOTAL)), theirs, rtol=0, atol=1e-12)
    assert parse_schedule(schedule.as_json()) == schedule


def test_all_names_of_transformers_are_known() -> None:
    from transformers import SchedulerType

    for name in SchedulerType:
        problems = schedule_problems({"schedule": name.value})
        assert name.value in SCHEDULES or "depends on the run's losses" in problems[0][1]
    assert {name for name, _, _ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({}, "schedule", "is missing; choose one of constant, "),
        ({"schedule": "cosin"}, "schedule", "'cosin' is unknown; choose one of"),
        ({"schedule": ["linear"]}, "schedule", "is unknown"),
        ({"schedule": "reduce_lr_on_plateau"}, "schedule", "give a file of the rates"),
        ({"schedule": "greedy"}, "schedule", "give a file of the rates"),
        ({"schedule": "constant", "total_steps": 9}, "total_steps", "unknown; constant takes nothing else"),
        (
            {"schedule": "linear"},
            "total_steps",
            "missing: a whole number of steps from 1 on; linear takes warm",
        ),
        ({"schedule": "linear", "total_steps": 9, "power": 2}, "power", "unknown; linear takes"),
        ({"schedule": "linear", "total_steps": 9.5}, "total_steps", "9.5 does not fit"),
        ({"schedule": "linear", "total_steps": True}, "total_steps", "True does not fit"),
        (
            {"schedule": "linear", "total_steps": 9, "warmup_steps": 9},
            "total_steps",
            "end before the warm-up",
        ),
        ({"schedule": "linear", "total_steps": 9, "warmup_steps": -1}, "warmup_steps", "-1 does not fit"),
        ({"schedule": "polynomial", "total_steps": 9}, "min_lr_rate", "missing: lr_end / learning_rate"),
        ({"schedule": "cosine_with_min_lr", "total_steps": 9, "min_lr_rate": 1}, "min_lr_rate", "1 does not"),
        ({"schedule": "cosine", "total_steps": 9, "num_cycles": float("nan")}, "num_cycles", "does not fit"),
        ({"schedule": "cosine_with_restarts", "total_steps": 9, "num_cycles": 1.5}, "num_cycles", "whole"),
        ({"schedule": "warmup_stable_decay", "total_steps": 9}, "num_decay_steps", "missing"),
        (
            {"schedule": "warmup_stable_decay", "total_steps": 9, "warmup_steps": 5, "num_decay_steps": 5},
            "total_steps",
            "end before the warm-up and the decay together",
        ),
        (
            {
                "schedule": "warmup_stable_decay",
                "total_steps": 9,
                "num_decay_steps": 5,
                "warmup_type": "cosine",
            },
            "warmup_type",
            "has no effect without warmup_steps",
        ),
        (
            {
                "schedule": "warmup_stable_decay",
                "total_steps": 9,
                "num_decay_steps": 5,
                "decay_type": "linear",
                "num_cycles": 1,
            },
            "num_cycles",
            "has no effect with decay_type: linear",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_key(given: dict[str, Any], key: str, said: str) -> None:
    problems = dict(schedule_problems(given))
    assert said in problems[key]
    with pytest.raises(ClockError, match=key):
        parse_schedule(given)
