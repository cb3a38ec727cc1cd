from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from hubextrap.errors import ReferenceNotFound, SourceError
from hubextrap.tensors import FileInfo, LocalSource, open_source
from hubextrap.trajectory.checkpoint import Checkpoint

Folder = Callable[[Mapping[str, bytes]], Path]
DATA = bytes(range(256)) * 400


def test_reads_any_range(folder: Folder) -> None:
    source = LocalSource(folder({"model.safetensors": DATA, "config.json": b"{}"}))
    assert source.files() == {"config.json": FileInfo(2), "model.safetensors": FileInfo(len(DATA))}
    assert source.read_file("config.json") == b"{}"
    for offset, length in [(0, len(DATA)), (1, 700), (len(DATA), 0), (len(DATA) - 1, 1)]:
        buffer = bytearray(length)
        source.read("model.safetensors", offset, memoryview(buffer))
        assert buffer == DATA[offset : offset + length]
    source.close()


def descriptors_of(file: Path) -> int:
    """How many of this process lead to it: others come and go as what earlier tests left is collected."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += link.readlink() == file
    return found


def test_many_threads_share_one_descriptor(folder: Folder) -> None:
    path = folder({"model.safetensors": DATA}) / "model.safetensors"
    source = LocalSource(path.parent)
    assert descriptors_of(path) == 0
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        barrier.wait()
        buffer = bytearray(1000)
        source.read("model.safetensors", number * 1000, memoryview(buffer))
        return buffer == DATA[number * 1000 : number * 1000 + 1000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert descriptors_of(path) == 1
    source.close()
    assert descriptors_of(path) == 0


def test_links_within_the_folder_are_followed_and_folders_left_out(folder: Folder) -> None:
    path = folder({"blob": DATA})
    (path / "model.safetensors").symlink_to("blob")
    (path / "sub").mkdir()
    (path / "linked_sub").symlink_to("sub")
    source = LocalSource(path)
    assert source.files() == {"blob": FileInfo(len(DATA)), "model.safetensors": FileInfo(len(DATA))}
    assert source.read_file("model.safetensors") == DATA
    source.close()


def test_the_folder_of_chat_templates_belongs_to_the_model(folder: Folder, tmp_path: Path) -> None:
    path = folder({"model.safetensors": DATA})
    (path / "additional_chat_templates" / "deeper").mkdir(parents=True)
    (path / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"tools")
    source = LocalSource(path)
    assert set(source.files()) == {"model.safetensors", "additional_chat_templates/tool_use.jinja"}
    assert source.read_file("additional_chat_templates/tool_use.jinja") == b"tools"
    with pytest.raises(SourceError, match="no file"):
        source.read_file("additional_chat_templates/../model.safetensors")
    source.close()


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "sub/file", "absent", "", "."])
def test_only_listed_names_can_be_read(folder: Folder, tmp_path: Path, file: str) -> None:
    path = folder({"model.safetensors": DATA})
    (tmp_path / "secret").write_bytes(b"secret")
    (path / "sub").mkdir()
    (path / "sub" / "file").write_bytes(b"secret")
    source = LocalSource(path, "ckpt")
    with pytest.raises(SourceError, match=r"^ckpt: no file"):
        source.read(file, 0, memoryview(bytearray(1)))
    with pytest.raises(SourceError, match=r"^ckpt: no file"):
        source.read_file(file)


@pytest.mark.parametrize(("offset", "length"), [(0, len(DATA) + 1), (len(DATA), 1), (-1, 2)])
def test_ranges_outside_the_file(folder: Folder, offset: int, length: int) -> None:
    source = LocalSource(folder({"model.safetensors": DATA}), "ckpt")
    with pytest.raises(SourceError, match=r"asked for, but it has 102,400"):
        source.read("model.safetensors", offset, memoryview(bytearray(length)))
    source.close()


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("change", ["shrink", "grow", "touch"])
def test_a_file_that_changes(folder: Folder, opened: bool, change: str) -> None:
    path = folder({"model.safetensors": DATA}) / "model.safetensors"
    source = LocalSource(path.parent, "ckpt")
    if opened:
        source.read("model.safetensors", 0, memoryview(bytearray(1)))
    if change == "touch":
        os.utime(path, (1, 1))
    else:
        os.truncate(path, 10 if change == "shrink" else 2 * len(DATA))
    with pytest.raises(SourceError, match="changed while it was read"):
        source.read("model.safetensors", 0, memoryview(bytearray(len(DATA))))
    source.close()


def test_a_small_file_that_is_not_small(folder: Folder) -> None:
    source = LocalSource(folder({"config.json": DATA}), "ckpt")
    with pytest.raises(SourceError, match="102,400 bytes are more than the 1,000"):
        source.read_file("config.json", limit=1000)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReferenceNotFound, match="absent: no such folder; check the path"):
        LocalSource(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot list the folder"):
        LocalSource(tmp_path / "file")


def test_open_source_takes_local_checkpoints(folder: Folder) -> None:
    path = folder({"model.safetensors": DATA})
    source = open_source(Checkpoint(100, None, "checkpoint-100", None, str(path)))
    assert isinstance(source, LocalSource)
    assert source.name == str(path)


def test_one_that_nobody_closes_gives_its_files_back(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(16))
    source = LocalSource(tmp_path)
    source.read("model.safetensors", 0, memoryview(bytearray(16)))
    (descriptor,) = source._descriptors.values()
    os.fstat(descriptor)
    del source
    gc.collect()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)
