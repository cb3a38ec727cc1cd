from __future__ import annotations

import errno
import gc
import hashlib
import os
import random
import resource
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from hubextrap.errors import OutputError
from hubextrap.tensors import FinishedShard, LocalSink
from hubextrap.tensors.blocks import WRITE_SIZE, BlockWriter

DATA = bytes(range(256)) * 40


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    sink = LocalSink(tmp_path / "new" / "out")
    writer = sink.open("model.safetensors", len(DATA))
    for start in range(0, len(DATA), 1000):
        writer.write(start, memoryview(DATA)[start : start + 1000])
    part = tmp_path / "new" / "out" / ".model.safetensors.part"
    assert [path.name for path in sink.folder.iterdir()] == [part.name]
    assert part.stat().st_size == len(DATA)
    shard = writer.finish()
    assert shard == FinishedShard("model.safetensors", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [path.name for path in sink.folder.iterdir()] == ["model.safetensors"]
    assert (sink.folder / "model.safetensors").read_bytes() == DATA
    writer.abort()
    assert (sink.folder / "model.safetensors").exists()


@pytest.mark.parametrize("size", [WRITE_SIZE - 1, WRITE_SIZE, WRITE_SIZE + 1, 9 * WRITE_SIZE + 12345])
def test_blocks_whatever_the_pieces(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    writer = LocalSink(tmp_path).open("model.safetensors", size)
    start, lengths = 0, random.Random(1)
    while start < size:
        end = min(size, start + lengths.choice([8, 4096, WRITE_SIZE, WRITE_SIZE + 7, 3 * WRITE_SIZE]))
        writer.write(start, memoryview(data)[start:end])
        start = end
    assert writer.finish().sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "model.safetensors").read_bytes() == data


def test_whole_blocks_pass_by_the_page_cache(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{tmp_path}: this file system has no O_DIRECT")
    writer = LocalSink(tmp_path).open("model.safetensors", 3 * WRITE_SIZE + 1)
    part = tmp_path / ".model.safetensors.part"
    writer.write(0, memoryview(bytes(2 * WRITE_SIZE)))
    assert _flags(part) & os.O_DIRECT
    writer.write(2 * WRITE_SIZE, memoryview(bytes(WRITE_SIZE + 1)))
    assert writer.finish().sha256 == hashlib.sha256(bytes(3 * WRITE_SIZE + 1)).hexdigest()


def _flags(path: Path) -> int:
    """How this process has the file open."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and link.readlink() == path:
            return int(Path(f"/proc/self/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0], 8)
    raise AssertionError(f"{path} is not open")


def test_a_block_that_the_disk_does_not_take(tmp_path: Path) -> None:
    writer = LocalSink(tmp_path).open("model.safetensors", 16 * WRITE_SIZE)

    def fill() -> None:
        for number in range(16):
            writer.write(number * WRITE_SIZE, memoryview(bytes(WRITE_SIZE)))
        writer.finish()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * WRITE_SIZE, hard))
    try:
        with pytest.raises(OutputError, match="no room: 16,777,216 bytes are needed"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_space_is_taken_at_once(tmp_path: Path) -> None:
    writer = LocalSink(tmp_path).open("model.safetensors", 1 << 20)
    assert (tmp_path / ".model.safetensors.part").stat().st_blocks * 512 >= 1 << 20
    writer.abort()


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    writer = LocalSink(tmp_path).open("model.safetensors", 10)
    writer.write(0, memoryview(b"12345"))
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.part").write_bytes(b"x" * 100)
    writer = LocalSink(tmp_path).open("model.safetensors", 2)
    writer.write(0, memoryview(b"ab"))
    writer.finish()
    assert (tmp_path / "model.safetensors").read_bytes() == b"ab"


def test_an_empty_file(tmp_path: Path) -> None:
    assert LocalSink(tmp_path).open("empty", 0).finish().sha256 == hashlib.sha256(b"").hexdigest()


def test_gaps_overlaps_and_early_ends_are_bugs_of_the_caller(tmp_path: Path) -> None:
    writer = LocalSink(tmp_path).open("model.safetensors", 10)
    writer.write(0, memoryview(b"123"))
    for offset, data in [(2, b"1"), (4, b"1"), (3, b"12345678")]:
        with pytest.raises(ValueError, match="expected 3 of 10"):
            writer.write(offset, memoryview(data))
    with pytest.raises(ValueError, match="finished at 3 of 10"):
        writer.finish()
    writer.abort()


def test_no_room(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).free + (1 << 30)
    with pytest.raises(OutputError) as caught:
        LocalSink(tmp_path).open("model.safetensors", needed)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: no room: {needed:,} bytes are needed, ")
    assert message.endswith("are free; make room or choose another output folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_large_files(tmp_path: Path) -> None:
    sink = LocalSink(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # For these lines only: the runner's own output may go to a file that is longer.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="no room: 2,000 bytes are needed"):
            sink.open("model.safetensors", 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["../x", "/x", "a/b", "", ".", ".."])
def test_names_that_leave_the_folder(tmp_path: Path, file: str) -> None:
    with pytest.raises(OutputError, match="not a plain file name"):
        LocalSink(tmp_path / "out").open(file, 1)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="choose another output folder") as error:
        LocalSink(tmp_path / "file" / "out")
    assert error.value.file == str(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="check the folder's permissions"):
        LocalSink(tmp_path).open("model.safetensors", 1)


def test_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    writer = LocalSink(tmp_path).open("model.safetensors", 0)
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        writer.finish()
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def sha256_threads() -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if thread.name in ("hubextrap-sha256", "hubextrap-write")
    ]


def descriptors_open() -> int:
    """But sockets: the hub of earlier tests closes their connections when they have been idle for long."""
    gc.collect()  # what earlier tests left open in a circle
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += not os.readlink(link).startswith("socket:")  # noqa: PTH115 - it is no path
    return found


def written(folder: Path) -> None:
    """Write a file of many blocks, as a merge does it."""
    writer = LocalSink(folder).open("model.safetensors", 16 * WRITE_SIZE)
    try:
        for number in range(16):
            writer.write(number * WRITE_SIZE, memoryview(bytes(WRITE_SIZE)))
        writer.finish()
    except BaseException:
        writer.abort()
        raise


@pytest.mark.parametrize("first", [3, 15])
@pytest.mark.parametrize("where", ["_hash", "_write"])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error"), ValueError("?")])
def test_whatever_goes_wrong_beside_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, first: int
) -> None:
    def fail(self: BlockWriter, offset: int, data: object) -> None:
        if offset >= first * WRITE_SIZE:
            raise error

    monkeypatch.setattr(BlockWriter, where, fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert sha256_threads() == []


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("started", [False, True])
def test_a_thread_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, started: bool
) -> None:
    """Or that a signal comes upon: one that is left would be waited for when the process ends."""
    start, count = threading.Thread.start, 0

    def fail(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if started or count != which:
            start(thread)
        if count == which:
            raise KeyboardInterrupt if started else RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(KeyboardInterrupt if started else RuntimeError):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert sha256_threads() == []


def test_what_ends_the_opening_of_a_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int, start: int, size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    before = descriptors_open()
    with pytest.raises(KeyboardInterrupt):
        LocalSink(tmp_path).open("model.safetensors", 10)
    assert list(tmp_path.iterdir()) == []
    assert descriptors_open() == before


def test_many_small_files_leave_nothing(tmp_path: Path) -> None:
    """Neither descriptors, nor threads, nor memory."""

    def write(count: int) -> tuple[int, int]:
        for number in range(count):
            writer = LocalSink(tmp_path).open(f"{number % 10}", WRITE_SIZE + 1)
            writer.write(0, memoryview(bytes(WRITE_SIZE + 1)))
            writer.abort() if number % 3 else writer.finish()
        maps = Path("/proc/self/maps").read_text().count("\n")
        return descriptors_open(), maps

    descriptors, maps = write(20)
    again, more = write(200)
    assert again == descriptors
    assert more < maps + 30
    assert sha256_threads() == []
