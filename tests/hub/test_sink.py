from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.errors import OutputError, PushError
from hubextrap.hub.push import push_folder
from hubextrap.hub.sink import HubSink
from hubextrap.hub.target import PushTarget
from hubextrap.localhub import Fault, LocalHub

pytestmark = pytest.mark.usefixtures("hub", "logged_in")


def write(sink: HubSink, file: str, content: bytes, piece: int = 1000) -> None:
    writer = sink.open(file, len(content))
    for offset in range(0, len(content), piece):
        writer.write(offset, memoryview(content)[offset : offset + piece])
    shard = writer.finish()
    assert (shard.file, shard.size) == (file, len(content))
    assert shard.sha256 == hashlib.sha256(content).hexdigest()


def parts(folder: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Shards and other files."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shards = {name: content for name, content in files.items() if name.endswith(".safetensors")}
    return shards, {name: content for name, content in files.items() if name not in shards}


def heads(repo: str) -> dict[str, str]:
    return {branch.name: branch.target_commit for branch in HfApi().list_repo_refs(repo).branches}


def test_the_same_model_as_from_a_folder(
    hub: LocalHub, models: Callable[..., Path], repo_id: str, tmp_path: Path
) -> None:
    folder = models(3, sharded=True)
    shards, others = parts(folder)
    assert len(shards) > 2
    with HubSink(PushTarget.parse(f"{repo_id}@step_400"), scratch=tmp_path) as sink:
        for file, content in shards.items():
            write(sink, file, content)
        assert not [request for request in hub.requests if "/commit/" in request.path]
        assert "step_400" not in heads(repo_id)
        result = sink.commit(others, "Predict step 400")
    assert heads(repo_id)["step_400"] == result.commit
    assert not list(tmp_path.iterdir())
    commits = HfApi().list_repo_commits(repo_id, revision="step_400")
    assert [commit.title for commit in commits] == ["Predict step 400", "initial commit"]
    assert push_folder(folder, PushTarget.parse(f"{repo_id}@step_400")).unchanged


def test_at_most_two_shards_are_on_the_disk(hub: LocalHub, repo_id: str, tmp_path: Path) -> None:
    hub.faults.add(Fault(r"^/lfs/", "PUT", count=6, delay=0.05))
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(list(tmp_path.glob("*/*"))))
            done.wait(0.002)

    with HubSink(PushTarget.parse(repo_id), scratch=tmp_path) as sink:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(6):
            write(sink, f"model-{number}.safetensors", os.urandom(50_000))
        result = sink.commit({"config.json": b"{}"}, "m")
        done.set()
        watcher.join()
    assert most == 2
    assert len(HfApi().list_repo_files(repo_id, revision=result.commit)) == 8


def test_each_upload_is_looked_at_once_and_not_before_every_shard(
    repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, done = 0, Future.done

    def count(upload: Future[object]) -> bool:
        nonlocal looks
        looks += 1
        return done(upload)

    monkeypatch.setattr(Future, "done", count)
    with HubSink(PushTarget.parse(repo_id)) as sink:
        for number in range(10):
            write(sink, f"model-{number}.safetensors", os.urandom(2000))
        sink.commit({"config.json": b"{}"}, "m")
    assert looks <= 2 * 10


def test_a_file_that_the_hub_stores_as_a_small_one(repo_id: str) -> None:
    with HubSink(PushTarget.parse(repo_id)) as sink:
        write(sink, "weights.txt", b"text")
        sink.commit({}, "m")
    remote = HfApi().get_paths_info(repo_id, ["weights.txt"])[0]
    assert remote.size == 4  # type: ignore[union-attr]
    assert remote.lfs is None  # type: ignore[union-attr]


def test_without_a_commit_nothing_shows(hub: LocalHub, repo_id: str, tmp_path: Path) -> None:
    hub.create_repo(repo_id)
    before = heads(repo_id)
    with HubSink(PushTarget.parse(f"{repo_id}@step_400"), scratch=tmp_path) as sink:
        write(sink, "model-1.safetensors", b"x" * 100)
        sink.open("model-2.safetensors", 100)
    assert heads(repo_id) == before
    assert not list(tmp_path.iterdir())


def test_an_upload_that_fails_stops_the_work(hub: LocalHub, repo_id: str, tmp_path: Path) -> None:
    hub.faults.add(Fault(r"^/lfs/", "PUT", status=403, count=100))
    with HubSink(PushTarget.parse(repo_id), scratch=tmp_path) as sink:
        refused = rf"{repo_id}@main: the Hub answered 403.*: use a token"
        with pytest.raises(PushError, match=refused):  # noqa: PT012, which of them sees it is up to the threads
            for number in range(10):
                write(sink, f"model-{number}.safetensors", os.urandom(100))
        with pytest.raises(PushError, match="the Hub answered 403"):
            sink.commit({}, "m")
    assert not list(tmp_path.iterdir())
    assert len(HfApi().list_repo_commits(repo_id)) == 1


def test_an_aborted_shard_leaves_its_place(repo_id: str, tmp_path: Path) -> None:
    with HubSink(PushTarget.parse(repo_id), scratch=tmp_path) as sink:
        for _ in range(3):
            writer = sink.open("model.safetensors", 10)
            writer.write(0, memoryview(b"12345"))
            writer.abort()
            writer.abort()
        for _ in range(3):
            with pytest.raises(OutputError, match="not a plain file name"):
                sink.open("../model.safetensors", 10)
        write(sink, "model.safetensors", b"whole")
        result = sink.commit({"config.json": b"{}"}, "m")
    assert "model.safetensors" in HfApi().list_repo_files(repo_id, revision=result.commit)


def test_somebody_pushed_while_we_computed(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    with HubSink(PushTarget.parse(repo_id)) as sink:
        write(sink, "model.safetensors", b"ours")
        theirs = hub.commit(repo_id, {"model.safetensors": b"theirs"})
        with pytest.raises(PushError, match=f"commit {theirs}") as error:
            sink.commit({"config.json": b"{}"}, "m")
        assert error.value.repo == repo_id
    assert heads(repo_id)["main"] == theirs


def test_a_target_that_refuses_is_known_before_any_work(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.tag(repo_id, "v1")
    with pytest.raises(PushError, match="v1 is a tag"):
        HubSink(PushTarget.parse(f"{repo_id}@v1"))


OVER_XET = """
import sys
from pathlib import Path
from hubextrap.localhub import LocalHub
import os
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
hub = LocalHub(root, tokens={"hf_" + "x" * 20: "me"}, xet=True)
with hub:
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_" + "x" * 20, "HF_HOME": str(root / "home")}
    from huggingface_hub import hf_hub_download
    from hubextrap.hub.push import push_folder
    from hubextrap.hub.sink import HubSink
    from hubextrap.hub.target import PushTarget

    target = PushTarget.parse("me/x@step_400")
    with HubSink(target) as sink:
        for path in sorted(folder.glob("*.safetensors")):
            content = path.read_bytes()
            writer = sink.open(path.name, len(content))
            writer.write(0, memoryview(content))
            writer.finish()
        others = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors"}
        made = sink.commit(others, "over Xet")
    assert push_folder(folder, target).commit == made.commit
    assert not push_folder(folder, PushTarget.parse("me/y")).unchanged
    for path in folder.iterdir():
        assert Path(hf_hub_download("me/x", path.name, revision="step_400")).read_bytes() == path.read_bytes()
    assert not [r for r in hub.requests if r.method == "PUT"]
    assert [r for r in hub.requests if "xet-write-token" in r.path]
"""


def test_over_xet(models: Callable[..., Path], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-W", "error", "-c", OVER_XET, str(tmp_path), str(models(3, sharded=True))]
    subprocess.run(command, check=True, env=environment, timeout=60)
