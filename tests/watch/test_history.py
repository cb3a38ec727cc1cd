"""The history of a watched run: what a kill leaves is read, what is no event is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubextrap.errors import CorruptFile, RecipeError
from hubextrap.statistics.hindsight import Foresight
from hubextrap.trajectory import Checkpoint
from hubextrap.trajectory.changes import SeenCheckpoint
from hubextrap.watching import Began, Gone, Made, Ran, Seen, Taken, read_history

COMMIT, OTHER = "a" * 40, "b" * 40


def written(folder: Path) -> Path:
    history = read_history(folder)
    history.add(Began(run={"repo": "me/run"}, since=10))
    history.add(Seen(checkpoint=SeenCheckpoint(10, "me/run@step_10", COMMIT, "x")))
    made = Made(step=30, folder=None, repo="me/ahead", revision="r", commit=COMMIT)
    history.add(Taken(step=10, number=0, said=Foresight(10, "two_point", 30, 0.1, None), made=made))
    history.add(Ran(step=10, ended="exit code 0"))
    return folder / "history.jsonl"


def test_it_reads_back_and_an_unfinished_line_never_was(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    found = read_history(tmp_path)
    assert found.said == [Foresight(10, "two_point", 30, 0.1, None)]
    assert found.ran[10].ended == "exit code 0"
    found.add(Gone(step=10))
    assert path.read_bytes().startswith(whole + b'{"event": "gone"')
    assert read_history(tmp_path).there == {}


def test_weights_that_are_others_mark_what_was_taken_before(tmp_path: Path) -> None:
    written(tmp_path)
    history = read_history(tmp_path)
    history.add(Gone(step=10))
    history.add(Seen(checkpoint=SeenCheckpoint(10, "me/run@step_10", OTHER, "y")))
    assert read_history(tmp_path).replaced == {10: {10}}


def test_a_checkpoint_is_read_where_it_was_first_seen(tmp_path: Path) -> None:
    written(tmp_path)
    now = Checkpoint(10, "me/run", "step_10", OTHER, "")
    assert read_history(tmp_path).pinned(now).commit == COMMIT
    elsewhere = Checkpoint(10, "me/run", "main", OTHER, "step_10")
    assert read_history(tmp_path).pinned(elsewhere).commit == OTHER


@pytest.mark.parametrize("line", [b"{}\n", b'{"event": "taken", "step": -1}\n', b"[]\n", b"x\n"])
def test_what_is_no_event_is_named_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(CorruptFile, match="line 5"):
        read_history(tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"since": 10', b'"since": 20'))
    with pytest.raises(CorruptFile, match="line 1"):
        read_history(tmp_path)


def test_another_run_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    history = read_history(tmp_path)
    history.check_same_run({"repo": "me/run"}, tmp_path)
    with pytest.raises(RecipeError, match="repo was 'me/run' and is 'me/other'"):
        history.check_same_run({"repo": "me/other"}, tmp_path)
