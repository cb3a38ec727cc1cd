"""A file that is written whole: what a kill leaves goes at the next write, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hubextrap.durable.atomic import is_new_name, read_sealed, write_sealed, write_whole
from hubextrap.errors import OutputError

DYING = """
import os, signal, sys
from pathlib import Path
from hubextrap.durable.atomic import write_whole

os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), b"never whole", remedy="")
"""
PAUSING = """
import os, sys
from pathlib import Path
from hubextrap.durable.atomic import write_whole

force = os.fsync
def pause(descriptor):
    print("written", flush=True)
    sys.stdin.readline()
    force(descriptor)
os.fsync = pause
write_whole(Path(sys.argv[1]), b"of the other process", remedy="")
"""


def strays(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_new_name(path.name)]


def killed_write(path: Path) -> Path:
    """What a write to ``path`` leaves that is killed just before its rename."""
    before = strays(path.parent)
    killed = subprocess.run([sys.executable, "-c", DYING, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = set(strays(path.parent)) - set(before)
    assert left.read_bytes() == b"never whole"
    return left


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "x"
    write_whole(place, b"one ", b"two", remedy="")
    assert place.read_bytes() == b"one two"
    longest = tmp_path / ("y" * 255)
    write_whole(longest, b"fits", remedy="")
    assert longest.read_bytes() == b"fits"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device; make room") as failed:
        write_whole(place, b"three", remedy="make room")
    assert failed.value.file == str(place)
    assert place.read_bytes() == b"one two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y" * 255]


@pytest.mark.parametrize("mode", [0o644, 0o400])
def test_what_a_kill_left_goes_at_the_next_write_of_that_file(tmp_path: Path, mode: int) -> None:
    results, other = tmp_path / "results.json", tmp_path / "other.json"
    results.write_bytes(b"as it was")
    results.chmod(mode)
    killed_write(results)
    killed_write(results)
    of_another = killed_write(other)
    mine = tmp_path / ".hubextrap-0123456789abcdef"  # such a name, but of no file that is written
    mine.write_bytes(b"mine")
    assert results.read_bytes() == b"as it was"

    write_whole(results, b"whole", remedy="")
    assert results.read_bytes() == b"whole"
    assert sorted(strays(tmp_path)) == sorted([of_another, mine])
    write_whole(other, b"whole", remedy="")
    assert strays(tmp_path) == [mine]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with subprocess.Popen(
        [sys.executable, "-c", PAUSING, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"written\n"
        write_whole(path, b"ours", remedy="")
        assert path.read_bytes() == b"ours"
        assert len(strays(tmp_path)) == 1
        other.communicate(b"\n\n\n")
    assert other.returncode == 0
    assert path.read_bytes() == b"of the other process"
    assert not strays(tmp_path)


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    failed: list[Exception] = []

    def write(number: int) -> None:
        try:
            for _ in range(100):
                write_sealed(path, {"from": number, "bulk": "x" * 10_000}, remedy="")
                assert read_sealed(path)["from"] in range(4)
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_that_only_takes_files(tmp_path: Path) -> None:
    """It may be written to, and neither listed nor forced to disk."""
    folder = tmp_path / "box"
    folder.mkdir()
    folder.chmod(0o300)
    write_whole(folder / "results.json", b"whole", remedy="")
    folder.chmod(0o700)
    assert (folder / "results.json").read_bytes() == b"whole"
