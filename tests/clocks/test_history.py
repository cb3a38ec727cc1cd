"""Rates are read from a trainer's state or a user's file; what cannot be meant names its record or line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubextrap.clocks import RateHistory, read_rate_file, read_trainer_state
from hubextrap.errors import ClockError, CorruptFile


def state(log: list[Any], **named: Any) -> bytes:
    return json.dumps({"log_history": log, "max_steps": 100} | named).encode()


def at(step: Any, rate: Any = 1e-6, **named: Any) -> dict[str, Any]:
    return {"step": step, "learning_rate": rate} | named


def test_records_without_a_rate_are_passed_over() -> None:
    log = [at(5, 2e-6), {"step": 5, "eval_loss": 1.0}, at(10), {"step": 10, "train_runtime": 3.0}]
    history = read_trainer_state(state(log), "trainer_state.json")
    assert history == RateHistory((5, 10), (2e-6, 1e-6), 100, "trainer_state.json")


def test_the_last_record_counts_and_a_resumed_run_undoes_what_it_repeats() -> None:
    log = [
        at(10, 5e-6),
        at(10, 4e-6),
        at(20, 3e-6),
        at(30, 2e-6),
        at(40, 1e-6),
        at(15, 3.5e-6),
        at(25, 2.5e-6),
    ]
    history = read_trainer_state(state(log), "trainer_state.json")
    assert history.steps == (10, 15, 25)
    assert history.rates == (4e-6, 3.5e-6, 2.5e-6)


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": 1.0}], [at(1, 0.0)]])
def test_a_state_without_rates_is_an_empty_history(log: list[Any]) -> None:
    history = read_trainer_state(state(log, max_steps=-1), "trainer_state.json")
    assert (history.steps, history.max_steps, history.changes) == ((), None, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "no list log_history"),
        (b'{"log_history": {}}', "no list log_history"),
        (state([at(1), 7]), "record 2: it is not a mapping"),
        (state([at(1), at(None)]), "record 2: the step None"),
        (state([at(1.5)]), "record 1: the step 1.5 is not a whole number"),
        (state([at(True)]), "record 1: the step True"),
        (state([at(-1)]), "record 1: the step -1"),
        (state([at(10**13)]), "record 1: the step 10000000000000"),
        (state([at(1, "1e-6")]), "record 1: the learning rate '1e-6' is not a number"),
        (state([at(1, True)]), "record 1: the learning rate True"),
        (state([at(1, -1e-6)]), "record 1: the learning rate -1e-06"),
        (state([at(1, float("nan"))]), "record 1: the learning rate nan"),
        (state([at(1, float("inf"))]), "record 1: the learning rate inf"),
        (state([at(1, 10**60)]), "record 1: the learning rate 1000"),
        (state([at(1)], max_steps="400"), "max_steps: the step '400'"),
        (state([at(step) for step in (9, 3, 8, 2, 7, 1, 6, 0)]), "not in order"),
    ],
)
def test_what_a_state_cannot_mean_names_the_record(content: bytes, said: str) -> None:
    with pytest.raises(CorruptFile, match=said.replace("[", r"\[")) as caught:
        read_trainer_state(content, "trainer_state.json")
    assert str(caught.value).startswith("trainer_state.json: ")


@pytest.mark.parametrize(
    "text",
    [
        "step,learning_rate\n1,2e-6\n2,1e-6\n",
        "\ufeffloss,train/global_step,train/learning_rate\r\n.5,1.0,2e-6\r\n.4,1,\r\n.3,2,1e-06\r\n",
        '"step","learning_rate"\n\n 1 ,2e-6\n2, 1e-6',
        '{"step": 1, "learning_rate": 2e-6}\n\n{"step": 1}\n{"step": 2, "learning_rate": 1e-6, "l": NaN}\n',
        '{"log_history": [{"step": 1, "learning_rate": 2e-6}, {"step": 2, "learning_rate": 1e-6}]}',
    ],
)
def test_files_that_users_have(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates"
    path.write_bytes(text.encode())
    history = read_rate_file(path)
    assert (history.steps, history.rates) == ((1, 2), (2e-6, 1e-6))
    assert history.source == str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no learning rate in it; write CSV"),
        ("step,learning_rate\n", "there is no learning rate in it"),
        ("step;learning_rate\n1;2\n", "line 1: no header with step and learning_rate"),
        ("step,loss\n1,2\n", "line 1: no header"),
        ("step,learning_rate\n1,2e-6\nx,1e-6\n", "line 3: the step 'x'"),
        ("step,learning_rate\n1,2e-6\n2,nan\n", "line 3: the learning rate 'nan'"),
        ("step,learning_rate\n1,2e-6\n2,-1\n", "line 3: the learning rate -1.0"),
        ("step,learning_rate\n1,2e-6,3\n", "line 2: it has 3 columns, but the header has 2"),
        ("step,step,learning_rate\n1,10,2e-6\n", "line 1: two columns are called step; keep one"),
        ('step,learning_rate\n1,"2e-6\n', "unexpected end"),
        ('{"step": 1.5, "learning_rate": 1e-6}', "line 1: the step 1.5 is not a whole number"),
        ('{"step": 1, "learning_rate": 1e-6}\n{"step": 2', "line 2: not valid JSON"),
        ('{"step": 1, "learning_rate": 1e-6}\n[]', "line 2: it is not a mapping"),
        ('{"learning_rate": 1e-6}', "line 1: there is a learning rate without a step"),
        ('{"step": 1, "learning_rate": "1"}', "line 1: the learning rate '1' is not a number"),
        ('{"log_history": [3]}', "log_history, record 1"),
        ("step,learning_rate\n1,0\n2,0\n", "0 at every step"),
        ("step,learning_rate\n1,\xff\n", "line 2: "),
    ],
)
def test_what_a_file_cannot_mean_names_the_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rates"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ClockError, match=said) as caught:
        read_rate_file(path)
    assert str(path) in str(caught.value)


def test_whole_steps_may_be_written_as_floats(tmp_path: Path) -> None:
    csv, lines = tmp_path / "csv", tmp_path / "lines"
    csv.write_text("step,learning_rate\n10.0,1e-6\n20.0,2e-6\n")
    lines.write_text('{"step": 10.0, "learning_rate": 1e-6}\n{"step": 20.0, "learning_rate": 2e-6}\n')
    assert read_rate_file(csv).steps == read_rate_file(lines).steps == (10, 20)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ClockError, match="cannot be read"):
            read_rate_file(path)


def test_up_to_a_step_and_whether_it_changes() -> None:
    history = RateHistory((1, 5, 9), (0.0, 2e-6, 2e-6), 100, "here")
    assert history.up_to(8) == RateHistory((1, 5), (0.0, 2e-6), 100, "here")
    assert history.up_to(3).steps == ()
    assert history.up_to(9) is history
    assert history.changes
    assert not RateHistory((1, 2), (2e-6, 2e-6 * (1 + 1e-15))).changes


def test_a_history_comes_back_from_json() -> None:
    history = RateHistory((1, 5), (1e-6, 2e-6), None, "here")
    value = json.loads(json.dumps(history.as_json()))
    assert RateHistory.from_json(value, "scan.json") == history
    for key, wrong in (
        ("steps", [5, 1]),
        ("steps", 3),
        ("rates", [1e-6, None]),
        ("rates", [1e-6]),
        ("max_steps", 0.5),
        ("source", None),
        ("more", 1),
    ):
        with pytest.raises(CorruptFile, match=r"scan\.json"):
            RateHistory.from_json(value | {key: wrong}, "scan.json")
