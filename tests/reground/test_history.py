"""The history reads back as written, whatever a kill left of its last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubextrap.claims import unsealed
from hubextrap.durable.log import sealed_line
from hubextrap.errors import CorruptFile, OutputError
from hubextrap.regrounding.history import Decision, append_decision, read_history, rewrite_history

JUMP = Decision(
    rl_steps=20,
    represented_steps=80,
    rule="two_point",
    n_wanted=60,
    n_used=60,
    action="jumped",
    reason="probe 0.5 before, 0.6 after: n 60 → 120",
    snapshot_steps=(0, 20),
    coefficients={"*": (-3.0000000000000004, 4.0), "model.embed": (0.1, 0.9)},
    backtest_error=1 / 3,
    probe_before=0.1,
)
SKIP = Decision(40, 100, "calibrated", 60, 0, "skipped", "too little", (0, 20, 80, 100), None)


def test_what_was_appended_reads_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "run" / "history.jsonl"
    assert read_history(path) == []
    append_decision(path, JUMP)
    append_decision(path, SKIP)
    assert read_history(path) == [JUMP, SKIP]


def test_a_line_of_an_older_version_reads_as_by_steps(tmp_path: Path) -> None:
    content = unsealed(json.loads(JUMP.as_line()))
    for key in ("clock", "full_rate_steps", "own_answers_before", "own_answers_after"):
        del content[key]
    path = tmp_path / "history.jsonl"
    path.write_bytes(sealed_line(content, ensure_ascii=False))
    assert read_history(path) == [JUMP]
    assert JUMP.clock == "steps"


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_an_unfinished_line_was_never_written(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "history.jsonl"
    append_decision(path, JUMP)
    whole = path.read_bytes()
    path.write_bytes(whole + SKIP.as_line()[:-cut])
    assert read_history(path) == [JUMP]
    append_decision(path, SKIP)
    assert path.read_bytes() == whole + SKIP.as_line()


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_decision(path, JUMP)
    append_decision(path, SKIP)
    rewrite_history(path, [JUMP])
    assert read_history(path) == [JUMP]
    assert [file.name for file in tmp_path.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("line", ["{}", "[1]", '{"rl_steps": 20', '{"rl_steps": 20, "n": 3}'])
def test_a_line_that_is_no_decision_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(JUMP.as_line() + line.encode() + b"\n")
    with pytest.raises(CorruptFile, match=r"line 2: not (a decision|valid JSON)"):
        read_history(path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = tmp_path / "file" / "history.jsonl"
    for write in (lambda: append_decision(history, JUMP), lambda: rewrite_history(history, [JUMP])):
        with pytest.raises(OutputError, match=r"cannot be written: .*; make room") as refused:
            write()
        assert refused.value.file == str(history)
