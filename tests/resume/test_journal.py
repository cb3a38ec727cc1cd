from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hubextrap.errors import OutputError
from hubextrap.tensors import FinishedShard, Journal
from hubextrap.tensors.interfaces import ShardInputs

ONE = FinishedShard("model-1.safetensors", 10, "1" * 64)
TWO = FinishedShard("model-2.safetensors", 20, "2" * 64)
MADE = {"the recipe": "a", "the checkpoint of step 0": "b"}


def test_it_only_grows_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, MADE)
    begun = path.read_bytes()
    journal.inputs[ONE.file] = made_from = ShardInputs(("5a", "5b"), True)
    journal.record(ONE)
    journal.identical = False
    one = path.read_bytes()
    journal.record(TWO)
    journal.close()
    assert begun == one[: len(begun)]
    assert one == path.read_bytes()[: len(one)]
    line = json.loads(one.splitlines()[1])
    assert re.fullmatch("[0-9a-f]{64}", line.pop("digest"))
    assert line == {
        "file": "model-1.safetensors",
        "size": 10,
        "sha256": "1" * 64,
        "identical": True,
        "inputs": ["5a", "5b"],
        "compared": True,
    }
    again = Journal(path, MADE)
    assert again.finished == {ONE.file: ONE, TWO.file: TWO}
    assert again.inputs == {ONE.file: made_from, TWO.file: ShardInputs((), False)}
    assert not again.identical
    assert again.changed == ()
    again.close()


def test_a_line_cut_short_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, MADE)
    journal.record(ONE)
    intact = len(path.read_bytes())
    journal.record(TWO)
    journal.close()
    content = path.read_bytes()
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        journal = Journal(path, MADE)
        expected = {ONE.file: ONE} if size >= intact else {}
        assert journal.finished == expected, size
        assert journal.changed == ()
        journal.record(TWO)
        journal.close()
        journal = Journal(path, MADE)
        assert journal.finished == expected | {TWO.file: TWO}, size
        journal.close()


@pytest.mark.parametrize(
    "line", [b"\xff\n", b"[]\n", b'{"file": 1}\n', b'{"file": "x", "size": "1", "sha256": ""}\n', b"\n"]
)
def test_a_damaged_line_ends_what_is_believed(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, MADE)
    journal.record(ONE)
    journal.close()
    good = path.read_bytes()
    journal = Journal(path, MADE)
    journal.record(TWO)
    journal.close()
    path.write_bytes(good + line + path.read_bytes()[len(good) :])
    journal = Journal(path, MADE)
    assert journal.finished == {ONE.file: ONE}
    journal.close()
    assert path.read_bytes() == good


def test_it_says_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, MADE)
    journal.record(ONE)
    journal.close()
    journal = Journal(path, {"the recipe": "other", "the checkpoint of step 5": "b"})
    assert journal.changed == ("the recipe", "the checkpoint of step 0", "the checkpoint of step 5")
    assert journal.finished == {}
    journal.close()
    assert len(path.read_bytes().splitlines()) == 1


def test_a_place_that_cannot_hold_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="journal cannot be written: No such"):
        Journal(tmp_path / "absent" / "journal", MADE)
