"""Checkpoints in a bucket, read by ranges; what was written to since it was pinned is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from conformance import check_source
from huggingface_hub import HfApi

from hubextrap.errors import HubExtrapError, SourceError, UnsupportedCheckpoint
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import open_source
from hubextrap.tensors.bucket import BucketSource
from hubextrap.trajectory import Checkpoint, resolve_checkpoint

FILES = {
    "model.safetensors": bytes(range(256)) * 8,
    "config.json": b"{}",
    "additional_chat_templates/tool.jinja": b"{{ x }}",
}
Put = Callable[[dict[str, bytes]], None]

pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture
def put(hub: LocalHub, repo_id: str, logged_in: str) -> Put:
    HfApi().create_bucket(repo_id)

    def add(files: dict[str, bytes]) -> None:
        items = [(content, f"run/step_100/{name}") for name, content in files.items()]
        HfApi().batch_bucket_files(repo_id, add=items)
        hub.requests.clear()

    return add


@pytest.fixture
def pinned(put: Put, repo_id: str) -> Checkpoint:
    put(FILES)
    return resolve_checkpoint(f"hf://buckets/{repo_id}/run/step_100")


def test_it_is_a_source(pinned: Checkpoint) -> None:
    source = open_source(pinned)
    assert isinstance(source, BucketSource)
    check_source(source, FILES)


def test_requests(pinned: Checkpoint, hub: LocalHub) -> None:
    """The folder and its templates once; each file is resolved once; then a range each."""
    source = open_source(pinned)
    hub.requests.clear()
    for start in (0, 100, 200):
        buffer = bytearray(50)
        source.read("model.safetensors", start, memoryview(buffer))
        assert buffer == FILES["model.safetensors"][start : start + 50]
    assert [request.method for request in hub.requests] == ["GET", "GET", "HEAD", "GET", "GET", "GET"]
    assert [request.headers["Range"] for request in hub.requests[-3:]] == [
        "bytes=0-49", "bytes=100-149", "bytes=200-249",
    ]  # fmt: skip


@pytest.mark.slow
def test_what_passes_is_tried_again(pinned: Checkpoint, hub: LocalHub) -> None:
    source = open_source(pinned)
    hub.faults.add(Fault("/resolve/", method="GET", truncate=700))
    hub.faults.add(Fault("/resolve/", method="GET", status=503))
    assert source.read_file("model.safetensors") == FILES["model.safetensors"]
    assert hub.faults.pending() == 0


@pytest.mark.parametrize("size", [2048, 1000, 3000])
@pytest.mark.parametrize("opened", ["not", "listed", "resolved"])
def test_written_to_after_it_was_pinned(pinned: Checkpoint, put: Put, opened: str, size: int) -> None:
    """However far it was looked into by then, and whether or not the size changes."""
    source = open_source(pinned)
    buffer = bytearray(100)
    if opened == "listed":
        source.files()
    elif opened == "resolved":
        source.read("model.safetensors", 0, memoryview(buffer))
    put({"model.safetensors": os.urandom(size)})
    with pytest.raises(
        SourceError, match=r"run/step_100.* written to.* since this command pinned it"
    ) as told:
        source.read("model.safetensors", 0, memoryview(buffer))
    assert "run the same command again" in str(told.value)


def test_removed_after_it_was_pinned(pinned: Checkpoint, repo_id: str) -> None:
    source = open_source(pinned)
    source.files()
    HfApi().batch_bucket_files(repo_id, delete=["run/step_100/model.safetensors"])
    with pytest.raises(HubExtrapError, match=r"run/step_100/model\.safetensors: no such file on the Hub"):
        source.read_file("model.safetensors")


def test_nothing_of_it_is_cached(pinned: Checkpoint) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="lies in a bucket, of which nothing is cached"):
        open_source(pinned, cache=True)
