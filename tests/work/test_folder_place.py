"""A folder as a plan's place: files whole or not there, whoever writes, kills included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubextrap.errors import OutputError, SourceError
from hubextrap.work.places import FolderPlace, open_place

WRITING = """
import itertools, sys
from hubextrap.work.places import open_place

place = open_place(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    place.write("done/0.json", b"%07d" % number * 2000)
"""


def test_a_folder(tmp_path: Path) -> None:
    place = open_place(str(tmp_path / "a" / "place"))
    assert isinstance(place, FolderPlace)
    assert place.name == str(tmp_path / "a" / "place")
    assert place.read("plan.json") is None
    assert place.names("done") == place.names(".") == frozenset()
    place.write("plan.json", b"{}")
    place.write("beside/0/config.json", b"1")
    place.write("beside/0/config.json", b"2")
    assert place.read("beside/0/config.json") == b"2"
    assert place.read("beside/0/config.json/x") is None
    assert place.names("beside/0") == {"config.json"}
    assert place.names("plan.json") == frozenset()
    assert open_place(place.name).read("plan.json") == b"{}"
    place.remove()
    place.remove()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_relative_name_means_the_same_folder_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = open_place("place")
    monkeypatch.chdir("/")
    place.write("plan.json", b"{}")
    assert (tmp_path / "place" / "plan.json").read_bytes() == b"{}"


def test_who_is_late_brings_back_no_place(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    place.write("plan.json", b"{}")
    place.remove()
    with pytest.raises(OutputError, match=r"place/done/0\.json: .*cannot be written: No such file") as caught:
        place.write("done/0.json", b"{}")
    assert caught.value.file == str(tmp_path / "place" / "done" / "0.json")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    place.write("done", b"a file")
    with pytest.raises(OutputError, match=r"done/0\.json: cannot be written: File exists; make room"):
        place.write("done/0.json", b"{}")
    (tmp_path / "place" / "failed" / "0.json").mkdir(parents=True)
    with pytest.raises(
        SourceError, match=r"failed/0\.json: cannot be read: Is a directory; remove it"
    ) as caught:
        place.read("failed/0.json")
    assert caught.value.file == str(tmp_path / "place" / "failed" / "0.json")
    with pytest.raises(OutputError, match="not a regular file"):
        place.write("failed/0.json", b"{}")
    elsewhere = FolderPlace(tmp_path / "place" / "done")
    with pytest.raises(OutputError, match=r"done/plan\.json"):
        elsewhere.write("plan.json", b"{}")
    assert elsewhere.read("plan.json") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may all")
def test_what_may_not_be_read_or_written_is_named(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    place.write("done/0.json", b"{}")
    (tmp_path / "place" / "done").chmod(0)
    try:
        for call in (
            lambda: place.read("done/0.json"),
            lambda: place.names("done"),
            lambda: place.write("done/0.json", b""),
        ):
            with pytest.raises((SourceError, OutputError), match=r"done.*Permission denied; .*permissions"):
                call()
    finally:
        (tmp_path / "place" / "done").chmod(0o700)


def test_no_link_is_written_through(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    place.write("plan.json", b"{}")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "place" / "0.json").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="it is a link"):
        place.write("0.json", b"theirs")
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.slow
def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    place.write("plan.json", b"{}")
    for attempt in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITING, place.name], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            until = time.monotonic() + 0.05 + 0.03 * attempt
            while time.monotonic() < until or place.read("done/0.json") is None:
                data = place.read("done/0.json") or b""
                assert data == data[:7] * 2000
                assert place.names("done") <= {"0.json"}
            writer.send_signal(signal.SIGKILL)
        data = place.read("done/0.json") or b""
        assert data == data[:7] * 2000
        assert data
    place.write("done/0.json", b"last")
    assert [path.name for path in (tmp_path / "place" / "done").iterdir()] == ["0.json"]
