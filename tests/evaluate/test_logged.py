"""The columns of a trainer's log that say how good the model is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hubextrap.errors import CorruptFile
from hubextrap.evaluation.logged import MOST_COLUMNS, LoggedColumn, read_logged_columns


def state(*records: Any, step: int | None = 40, **own: Any) -> bytes:
    return json.dumps({"global_step": step, "log_history": list(records)} | own).encode()


def columns(content: bytes, step: int = 40) -> dict[str, dict[int, float]]:
    found = read_logged_columns(content, "trainer_state.json", step)
    return {one.name: dict(zip(one.steps, one.values, strict=True)) for one in found}


def test_rewards_and_evaluations_are_taken_and_nothing_else() -> None:
    found = columns(
        state(
            {
                "step": 10,
                "rewards/length/mean": 0.1,
                "reward": 0.2,
                "loss": 1.0,
                "learning_rate": 1e-6,
                "epoch": 0.1,
            },
            {
                "step": 20,
                "eval_reward": 0.5,
                "eval_runtime": 9.0,
                "eval_samples_per_second": 3.0,
                "eval_loss": 1,
            },
            {"step": 30, "reward": 0.3, "reward_std": 0.1, "grad_norm": 2.0},
            {"step": 40, "reward": None, "eval_loss": "nan", "eval_reward": True, "train_runtime": 1.0},
        )
    )
    assert found == {
        "reward": {10: 0.2, 30: 0.3},
        "eval_reward": {20: 0.5},
        "eval_loss": {20: 1.0},
        "rewards/length/mean": {10: 0.1},
    }
    assert next(iter(found)) == "reward"


def test_what_a_resumed_run_repeats_counts_once() -> None:
    log = [{"step": step, "reward": step / 100} for step in (10, 20, 30)]
    again = [{"step": step, "reward": 1.0} for step in (20, 40)]
    assert columns(state(*log, *again)) == {"reward": {10: 0.1, 20: 1.0, 40: 1.0}}


def test_records_behind_the_checkpoint_and_odd_numbers_do_not_count() -> None:
    log = state({"step": 40, "reward": 1.0}, {"step": 50, "reward": 2.0}, step=None)
    assert columns(log) == {"reward": {40: 1.0}}
    odd = b'{"log_history": [{"step": 1, "reward": NaN}, {"step": 2, "reward": 1e999}]}'
    assert columns(odd) == {}
    assert columns(state({"step": 1, "reward": -1e200}, {"step": 2, "reward": 10**90})) == {
        "reward": {2: 1e90}
    }
    many = state(*({"step": 1, f"eval_{number}": 1.0} for number in range(2 * MOST_COLUMNS)))
    assert len(columns(many)) == MOST_COLUMNS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "no log_history"),
        (b'{"log_history": {}}', "no log_history"),
        (state([1]), "record 1: the step None is no step"),
        (state({"step": 1, "reward": 1.0}, {"step": -1, "reward": 1.0}), "record 2: the step -1 is no step"),
        (state({"step": True, "reward": 1.0}), "record 1"),
        (state({"step": 1}, step=39), "from step 39, but its checkpoint is step 40"),
        (b"{", "trainer_state.json"),
    ],
)
def test_no_such_file_is_an_error_that_names_the_record(content: bytes, said: str) -> None:
    with pytest.raises(CorruptFile, match=r"^trainer_state\.json: ") as caught:
        read_logged_columns(content, "trainer_state.json", 40)
    assert said in str(caught.value)


def test_the_value_at_a_checkpoint_is_the_last_one_logged_since_the_one_before() -> None:
    column = LoggedColumn("reward", (10, 20, 30), (0.1, 0.2, 0.3))
    assert [column.between(after, step) for after, step in ((-1, 10), (10, 25), (25, 29), (25, 40))] == [
        0.1, 0.2, None, 0.3
    ]  # fmt: skip
