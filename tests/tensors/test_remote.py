from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from hubextrap.errors import AccessDenied, ReferenceNotFound, SourceError, UnsupportedCheckpoint
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import (
    FileInfo,
    LocalSource,
    Patience,
    RemoteSource,
    Source,
    open_source,
    read_layout,
    remote,
    transfer,
)
from hubextrap.tensors.cache import CachedSource
from hubextrap.trajectory.checkpoint import Checkpoint

WEIGHTS = "model.safetensors"
CDN = "Signature="
"""In the raw path of every request to the storage, and of no other."""


def read(source: Source, file: str, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.read(file, offset, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture
def data() -> bytes:
    return os.urandom(300_000)


@pytest.fixture
def checkpoint(cdn_hub: LocalHub, repo_id: str, data: bytes) -> Checkpoint:
    """A checkpoint on the Hub that holds ``data`` as model.safetensors."""
    cdn_hub.create_repo(repo_id)
    commit = cdn_hub.commit(repo_id, {WEIGHTS: data, "config.json": b'{"a": 1}\n', "sub/other.json": b"{}"})
    return Checkpoint(1, repo_id, "main", commit, "")


@pytest.fixture
def stored(checkpoint: Checkpoint) -> Iterator[Source]:
    source = open_source(checkpoint)
    yield source
    source.close()


def requests(hub: LocalHub, path: str) -> list[str]:
    return [request.method for request in hub.requests if path in request.path]


def test_lists_one_folder_with_sizes_and_hashes(
    cdn_hub: LocalHub, stored: Source, data: bytes, repo_id: str
) -> None:
    import hashlib

    files = stored.files()
    assert set(files) == {".gitattributes", WEIGHTS, "config.json"}
    assert files[WEIGHTS] == FileInfo(len(data), hashlib.sha256(data).hexdigest())
    assert files["config.json"] == FileInfo(9, hashlib.sha1(b'blob 9\0{"a": 1}\n').hexdigest())
    commit = cdn_hub.commit(repo_id, {"a/checkpoint-1/config.json": b"{}", "a/checkpoint-10/x": b""})
    assert set(RemoteSource(repo_id, commit, "a/checkpoint-1").files()) == {"config.json"}


@pytest.mark.parametrize("folder", ["", "a/checkpoint-1"])
@pytest.mark.parametrize("cache", [False, True])
def test_the_folder_of_chat_templates_belongs_to_the_model(
    cdn_hub: LocalHub, repo_id: str, folder: str, cache: bool
) -> None:
    prefix = f"{folder}/" if folder else ""
    template = "additional_chat_templates/tool_use.jinja"
    files = {prefix + WEIGHTS: b"w", prefix + template: b"tools", f"{prefix}other/{template}": b"no"}
    cdn_hub.create_repo(repo_id)
    source = open_source(Checkpoint(1, repo_id, "main", cdn_hub.commit(repo_id, files), folder), cache=cache)
    assert set(source.files()) - {".gitattributes"} == {WEIGHTS, template}
    assert source.read_file(template) == b"tools"
    source.close()


def test_reads_any_range(stored: Source, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 70_000)
    assert read(stored, WEIGHTS, 0, len(data)) == data
    assert read(stored, WEIGHTS, 12_345, 200_001) == data[12_345 : 12_345 + 200_001]
    assert read(stored, WEIGHTS, len(data) - 1, 1) == data[-1:]
    assert read(stored, WEIGHTS, len(data), 0) == b""
    assert stored.read_file("config.json") == b'{"a": 1}\n'


def test_a_file_is_resolved_once(
    cdn_hub: LocalHub, stored: Source, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", 30_000)
    for _ in range(3):
        assert read(stored, WEIGHTS, 0, len(data)) == data
    assert requests(cdn_hub, "/resolve/") == ["HEAD"]
    assert requests(cdn_hub, CDN) == ["GET"] * 30
    assert len(requests(cdn_hub, "/tree/")) == 1


def test_the_token_goes_to_the_hub_and_nowhere_else(cdn_hub: LocalHub, repo_id: str, data: bytes) -> None:
    cdn_hub.create_repo(repo_id, private=True)
    commit = cdn_hub.commit(repo_id, {WEIGHTS: data, "config.json": b"{}"})
    source = RemoteSource(repo_id, commit)
    assert read(source, WEIGHTS, 0, len(data)) == data
    assert source.read_file("config.json") == b"{}"
    at_cdn = [request for request in cdn_hub.requests if request.port == cdn_hub.cdn_port]
    at_hub = [request for request in cdn_hub.requests if request.port != cdn_hub.cdn_port]
    assert len(at_cdn) == 1
    assert "token" not in (str(at_cdn[0].headers) + at_cdn[0].path).lower()
    assert "Authorization" not in at_cdn[0].headers
    assert all("Bearer hf_" in request.headers["Authorization"] for request in at_hub)
    assert at_cdn[0].headers["Accept-Encoding"] == "identity"
    assert "hubextrap/" in at_cdn[0].headers["User-Agent"]


def test_an_expired_address_is_resolved_again(
    cdn_hub: LocalHub, stored: Source, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's clock, which is put on: no address expires before it is used."""
    now = time.time()
    monkeypatch.setattr("hubextrap.localhub.signing.time", SimpleNamespace(time=lambda: now))
    cdn_hub.cdn_expiry = 1.0
    assert read(stored, WEIGHTS, 0, 1000) == data[:1000]
    now += 1.05
    assert read(stored, WEIGHTS, 1000, 1000) == data[1000:2000]
    assert requests(cdn_hub, "/resolve/") == ["HEAD", "HEAD"]
    assert [request.status for request in cdn_hub.requests if CDN in request.path] == [206, 403, 206]


def test_requests_in_flight_are_bounded(
    cdn_hub: LocalHub,
    stored: Source,
    checkpoint: Checkpoint,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "PART", 10_000)
    running, most, lock = 0, 0, threading.Lock()
    original = transfer.fetch

    def counted(*arguments: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        original(*arguments)
        with lock:
            running -= 1

    monkeypatch.setattr(remote, "fetch", counted)
    cdn_hub.faults.add(Fault(CDN, delay=0.02, count=100))
    other = open_source(checkpoint)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda source=source: results.append(read(source, WEIGHTS, 0, len(data))))
        for source in (stored, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [data, data]
    assert 1 < most <= remote.IN_FLIGHT


def test_more_small_reads_are_in_flight_than_large_ones(
    checkpoint: Checkpoint, stored: Source, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sources together, each in the thread that asks."""
    waiting, lock = threading.Barrier(remote.SMALL_IN_FLIGHT), threading.Lock()
    running: list[str] = []
    most: list[int] = []

    def fetch(target: transfer.Target, part: transfer.Part) -> None:
        with lock:
            running.append(threading.current_thread().name)
            most.append(len(running))
        waiting.wait(20)
        transfer.fetch(target, part)
        with lock:
            running.pop()

    other = open_source(checkpoint)
    sources = [stored, other] * remote.SMALL_IN_FLIGHT
    for source in sources[:2]:
        read(source, WEIGHTS, 0, 1)  # resolved
    monkeypatch.setattr(remote, "fetch", fetch)
    with ThreadPoolExecutor(len(sources), thread_name_prefix="asking") as pool:
        found = list(pool.map(lambda pair: read(pair[1], WEIGHTS, pair[0] * 1000, 900), enumerate(sources)))
    assert found == [data[place : place + 900] for place in range(0, 1000 * len(sources), 1000)]
    assert max(most) == remote.SMALL_IN_FLIGHT > remote.IN_FLIGHT
    other.close()


def test_a_small_read_gives_its_place_back_when_it_fails(cdn_hub: LocalHub, stored: Source) -> None:
    read(stored, WEIGHTS, 0, 1)
    cdn_hub.faults.add(Fault(CDN, headers={"Content-Encoding": "gzip"}, count=10**6))
    stored._patience = Patience(attempts=1)  # type: ignore[attr-defined]
    for _ in range(remote.SMALL_IN_FLIGHT + 1):
        with pytest.raises(SourceError, match="though plain bytes were asked for"):
            read(stored, WEIGHTS, 0, 1)
    cdn_hub.faults.clear()
    assert len(read(stored, WEIGHTS, 0, 10)) == 10


def test_without_a_cdn_the_hub_itself_serves_ranges(
    hub: LocalHub, repo_id: str, data: bytes, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.create_repo(repo_id, private=True)
    source = RemoteSource(repo_id, hub.commit(repo_id, {WEIGHTS: data}))
    assert read(source, WEIGHTS, 5, 1000) == data[5:1005]


@pytest.fixture
def sources(
    cdn_hub: LocalHub, repo_id: str, sharded: Any, tmp_path: Path
) -> Iterator[tuple[Mapping[str, bytes], list[Source]]]:
    """The same checkpoint in a subfolder on the Hub, in the cache and in a local folder."""
    files = {**sharded([["a", "b"], ["c"]]), "config.json": b"{}"}
    beside = {"run/checkpoint-10/model.safetensors": b"other", "run/checkpoint-1/global/x.json": b"{}"}
    pickles = {"run/checkpoint-1/optimizer.pt": os.urandom(1000)}
    cdn_hub.create_repo(repo_id)
    here = {f"run/checkpoint-1/{file}": data for file, data in files.items()}
    commit = cdn_hub.commit(repo_id, {**here, **beside, **pickles})
    checkpoint = Checkpoint(1, repo_id, "main", commit, "run/checkpoint-1")
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    local = Checkpoint(1, None, "checkpoint-1", None, str(tmp_path))
    opened = [open_source(checkpoint), open_source(checkpoint, cache=True), open_source(local)]
    yield files, opened
    for source in opened:
        source.close()


def test_all_sources_give_the_same_bytes_and_the_same_layout(
    sources: tuple[Mapping[str, bytes], list[Source]],
) -> None:
    files, opened = sources
    assert [type(source) for source in opened] == [RemoteSource, CachedSource, LocalSource]
    layouts = [read_layout(source) for source in opened]
    assert layouts[0].shards == layouts[1].shards == layouts[2].shards
    assert set(layouts[0].tensors) == {"a", "b", "c"}
    for source in opened:
        assert {file: source.read_file(file) for file in files} == files
        for tensor in layouts[0].tensors.values():
            found = read(source, tensor.file, tensor.offset, tensor.nbytes)
            assert found == files[tensor.file][tensor.offset : tensor.offset + tensor.nbytes]


def test_the_cache_holds_the_folder_only_and_no_pickles(
    repo_id: str, sources: tuple[Mapping[str, bytes], list[Source]]
) -> None:
    files, opened = sources
    assert set(opened[1].files()) == set(files)
    assert opened[0].name == opened[1].name
    cached = Path(
        huggingface_hub.constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}", "snapshots"
    )
    assert {path.name for path in cached.rglob("*") if path.is_file()} == set(files)


def test_a_cached_checkpoint_is_not_downloaded_again(cdn_hub: LocalHub, checkpoint: Checkpoint) -> None:
    for _ in range(2):
        open_source(checkpoint, cache=True).close()
    assert requests(cdn_hub, CDN) == ["GET"]


def test_a_pickle_is_refused_before_it_is_downloaded(cdn_hub: LocalHub, repo_id: str) -> None:
    cdn_hub.create_repo(repo_id)
    commit = cdn_hub.commit(repo_id, {"pytorch_model.bin": os.urandom(1000)})
    checkpoint = Checkpoint(1, repo_id, "main", commit, "")
    with pytest.raises(UnsupportedCheckpoint, match=r"@main: pytorch_model.bin is a pickle"):
        open_source(checkpoint, cache=True)
    with pytest.raises(UnsupportedCheckpoint, match=r"@main: pytorch_model.bin is a pickle"):
        read_layout(open_source(checkpoint))
    assert requests(cdn_hub, CDN) == []


@pytest.mark.parametrize("file", ["../secret", "sub/other.json", "absent", "", "config.json?x"])
def test_only_listed_names_can_be_read(stored: Source, file: str) -> None:
    with pytest.raises(SourceError, match=f"^{stored.name}: no file"):
        stored.read(file, 0, memoryview(bytearray(1)))


def test_ranges_outside_the_file(stored: Source) -> None:
    for offset, length in [(0, 300_001), (300_000, 1), (-1, 2)]:
        with pytest.raises(SourceError, match="asked for, but it has 300,000"):
            read(stored, WEIGHTS, offset, length)
    with pytest.raises(SourceError, match="300,000 bytes are more than the 1,000"):
        stored.read_file(WEIGHTS, limit=1000)


def test_what_is_not_there(cdn_hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReferenceNotFound, match="no such repo"):
        RemoteSource(repo_id, "0" * 40).files()
    cdn_hub.create_repo(repo_id, gated=True)
    commit = cdn_hub.commit(repo_id, {WEIGHTS: b"x"})
    with pytest.raises(ReferenceNotFound, match="no such revision"):
        RemoteSource(repo_id, "0" * 40).files()
    with pytest.raises(ReferenceNotFound, match="no such folder"):
        RemoteSource(repo_id, commit, "absent").files()
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(AccessDenied, match="gated; ask for access"):
        read(RemoteSource(repo_id, commit), WEIGHTS, 0, 1)


def test_offline(stored: Source, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.files()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        read(stored, WEIGHTS, 0, 1)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        open_source(checkpoint).files()


def test_a_closed_source_says_so(stored: Source) -> None:
    stored.files()
    stored.close()
    with pytest.raises(SourceError, match="the source is closed"):
        read(stored, WEIGHTS, 0, 1)


@pytest.mark.parametrize("part", [remote.PART, 400], ids=["by the reader", "by the pool"])
def test_closing_ends_reads_under_way(
    cdn_hub: LocalHub, stored: Source, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART", part)
    stored.files()
    cdn_hub.faults.add(Fault(CDN, status=503, headers={"Retry-After": "60"}, count=100))

    def close() -> None:
        while not requests(cdn_hub, CDN):  # a read that has not begun would be told something else
            time.sleep(0.01)
        time.sleep(0.3)
        stored.close()

    closing = threading.Thread(target=close)
    closing.start()
    start = time.monotonic()
    with pytest.raises(SourceError, match="the source was closed while it was read"):
        read(stored, WEIGHTS, 0, 1000)
    assert time.monotonic() - start < 5
    closing.join()


@pytest.mark.parametrize("path", ["..", "../x.model", "/etc/passwd", "a/../../x", "."])
def test_a_listing_that_leads_out_of_the_repo(
    path: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Hub that is not to be trusted may give it; nothing is read or written then."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    from hubextrap.errors import HubExtrapError
    from hubextrap.trajectory import resolve_checkpoint

    listed = HfApi.list_repo_tree

    def hostile(api: HfApi, *arguments: Any, **more: Any) -> Iterator[Any]:
        yield from listed(api, *arguments, **more)
        yield RepoFile(path=path, size=1, oid="0" * 40)

    monkeypatch.setattr(HfApi, "list_repo_tree", hostile)
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for look in (
        lambda: open_source(checkpoint).files(),
        lambda: open_source(checkpoint, cache=True),
        lambda: resolve_checkpoint(str(checkpoint.repo), step=1),
    ):
        with pytest.raises(HubExtrapError, match="the Hub lists a path that leads out of the repo"):
            look()
    assert not cache.exists()


@pytest.mark.parametrize("name", ["\u202elnik.jinja", "a\\..\\b.model", "C:x.model", "a\u2028b.vocab"])
def test_odd_names_in_a_repo(name: str, checkpoint: Checkpoint, cdn_hub: LocalHub, data: bytes) -> None:
    """What would be taken along is refused by its name; by ranges, the rest of the repo can be read."""
    from hubextrap.hub.side_files import side_files

    assert checkpoint.repo is not None
    commit = cdn_hub.commit(checkpoint.repo, {name: b"x"})
    odd = Checkpoint(1, checkpoint.repo, "main", commit, "")
    source = open_source(odd)
    assert read(source, WEIGHTS, 0, 10) == data[:10]
    for look in (
        lambda: side_files(source, None),
        lambda: source.read_file(name),
        lambda: open_source(odd, cache=True),
    ):
        with pytest.raises(SourceError, match="characters that a name must not have") as error:
            look()
        assert str(error.value).isprintable()
    source.close()


def test_names_that_a_disk_does_not_tell_apart(
    checkpoint: Checkpoint, cdn_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --cache reads is what the Hub lists, file by file; here one of two has taken the other's place."""
    from hubextrap.tensors import cache

    assert checkpoint.repo is not None
    commit = cdn_hub.commit(checkpoint.repo, {"LICENSE": b"one", "license": b"two"})
    both = Checkpoint(1, checkpoint.repo, "main", commit, "")
    source = open_source(both, cache=True)
    assert source.read_file("license") == b"two"
    assert isinstance(source, LocalSource)
    (source.folder / "LICENSE").unlink()
    source.close()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(source.folder))
    with pytest.raises(SourceError, match="not in the cache as the Hub lists") as error:
        cache.cached_source(both)
    assert error.value.file == "LICENSE"
