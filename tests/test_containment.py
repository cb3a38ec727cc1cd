"""Reads that are bounded by what is read, and files that are replaced; for folders see tests/chain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hubextrap.api.output import check_output
from hubextrap.containment import entries_of, leads_out, name_problem, read_named
from hubextrap.durable.atomic import write_whole
from hubextrap.errors import OutputError
from hubextrap.output_files import file_problem, is_mount_point


def test_a_size_is_not_believed(tmp_path: Path) -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    assert b"VmRSS" in read_named("/proc/self/status")
    with pytest.raises(OSError, match="more than the 100 bytes that are read"):
        read_named("/proc/self/status", 100)
    (tmp_path / "file").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="more than the 100 bytes that are read"):
        read_named(tmp_path / "file", 100)
    os.truncate(tmp_path / "file", 100)
    assert read_named(tmp_path / "file", 100) == b"x" * 100
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(OSError, match="more than the 100 bytes that are read"):
        read_named(tmp_path / "file", 100)


def test_a_pipe_that_never_ends() -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with pytest.raises(OSError, match="more than the 1,000 bytes that are read"):
            read_named(f"/dev/fd/{process.stdout.fileno()}", 1000)
        process.kill()


def test_a_pipe_that_is_slow_and_one_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        for part in (b"one ", b"two"):
            stopped.wait(0.1)
            os.write(writing, part)
        os.close(writing)

    stopped = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    assert read_named(f"/dev/fd/{reading}") == b"one two"
    thread.join()
    os.close(reading)
    reading, writing = os.pipe()
    monkeypatch.setattr("hubextrap.containment.PIPE_PATIENCE", 0.2)
    with pytest.raises(TimeoutError, match=r"did not end within 0.2 s"):
        read_named(f"/dev/fd/{reading}")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("path", ["..", "a/../b", "/etc/passwd", "a//b", "./a", "a\0b", ""])
def test_paths_that_lead_out_of_a_repo(path: str) -> None:
    assert leads_out(path)


@pytest.mark.parametrize("path", ["a", "a/b.txt", "..a", "a..", ".hidden/x", "ü/ 😀"])
def test_paths_that_stay_in_a_repo(path: str) -> None:
    assert not leads_out(path)


def test_names() -> None:
    for name in (
        "",
        ".",
        "..",
        "a\nb",
        "\x1b[31m",
        "\u202e",
        "\udcff",
        "a\x7f",
        "\u200b",
        "a\\b",
        "C:x",
        "a\u2028",
    ):
        assert name_problem(name) is not None, ascii(name)
    for name in ("config.json", "ünï.model", "日本語.txt", "a b", "-", "x" * 255, "a'b\"c", "$HOME", "😀"):
        assert name_problem(name) is None, ascii(name)


def test_what_no_file_takes_the_place_of(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link", tmp_path / "pipe", tmp_path, Path("/"), Path("/dev/full"), Path("..")):
        assert file_problem(path) is not None, path
        with pytest.raises(OutputError, match=r"it is ") as refused:
            write_whole(path, b"x", remedy="name another file")
        assert refused.value.file == str(path)
    assert file_problem(tmp_path / "new") is None


def test_mount_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a b"
    odd.mkdir()
    assert is_mount_point(Path("/proc"))
    assert not is_mount_point(odd)
    assert not is_mount_point(tmp_path / "not there")
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 98:0 /mnt1 {str(odd).replace(' ', chr(92) + '040')} rw - ext3 /dev/root rw\n")
    monkeypatch.setattr("hubextrap.output_files._MOUNTS", table)
    assert is_mount_point(odd)  # of a part of the same file system

    with pytest.raises(OutputError, match=r"a b: is a mount point, .* name one in it, as .*/a b/model"):
        check_output(odd, {"": {"model.safetensors": 1}})


_MOUNTED = """
import subprocess, sys
from pathlib import Path
from hubextrap.output_files import is_mount_point
folder = Path(sys.argv[1])
for name, what in (("tmpfs", ["-t", "tmpfs", "none"]), ("bind", ["--bind", folder / "other"])):
    assert not is_mount_point(folder / name)
    subprocess.run(["mount", *what, folder / name], check=True)
    assert is_mount_point(folder / name)
"""


def test_real_mount_points(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    for name in ("tmpfs", "bind", "other"):
        (tmp_path / name).mkdir()
    subprocess.run([*unshare, sys.executable, "-c", _MOUNTED, tmp_path], check=True)


def test_what_a_snapshot_of_the_cache_may_link_to(tmp_path: Path) -> None:
    """The repo's own blobs, and those that repos share (huggingface_hub 2); nothing else beside them."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--me--run" / "snapshots" / ("0" * 40)
    own, shared = cache / "models--me--run" / "blobs", cache / "blobs" / "ab"
    for folder in (snapshot, own, shared, cache / "blobs" / "other", cache / "models--me--private" / "blobs"):
        folder.mkdir(parents=True)
    (own / "etag").write_text("x")
    (shared / ("ab" + "0" * 62)).write_text("x")
    (own / "0abc").symlink_to(f"../../blobs/ab/ab{'0' * 62}")
    (snapshot / "own").symlink_to("../../blobs/etag")
    (snapshot / "shared").symlink_to("../../blobs/0abc")
    for name, leads_to in (
        ("token", cache / "token"),
        ("other repo", cache / "models--me--private" / "blobs" / "x"),
        ("odd", cache / "blobs" / "other" / "x"),
        ("deep", cache / "blobs" / "x"),
    ):
        leads_to.write_text("secret")
        (snapshot / name).symlink_to(leads_to)
    found = {name: entry.problem for name, entry in entries_of(snapshot).items()}
    assert {name for name, problem in found.items() if problem is None} == {"own", "shared"}
    for name in ("token", "other repo", "odd", "deep"):
        assert "leads out of the folder" in (found[name] or "")
