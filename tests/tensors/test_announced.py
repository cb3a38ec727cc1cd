"""Every field of an answer that says which bytes come is checked: one alone that is wrong is refused."""

from __future__ import annotations

import os
import re

import pytest

from hubextrap.errors import HubExtrapError, SourceError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import Patience, RemoteSource

WEIGHTS = "model.safetensors"
STORAGE = "Signature="
DATA = os.urandom(5_000)
TWICE = Patience(attempts=2, seconds=20, first_wait=0.01, longest_wait=0.01)


@pytest.fixture
def source(cdn_hub: LocalHub, repo_id: str) -> RemoteSource:
    cdn_hub.create_repo(repo_id)
    return RemoteSource(repo_id, cdn_hub.commit(repo_id, {WEIGHTS: DATA}), name="ckpt", patience=TWICE)


def read(source: RemoteSource, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.read(WEIGHTS, offset, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Content-Range", "bytes 99-299/5000"),
        ("Content-Range", "bytes 101-299/5000"),
        ("Content-Range", "bytes 100-298/5000"),
        ("Content-Range", "bytes 100-300/5000"),
        ("Content-Range", "bytes 100-299/4999"),
        ("Content-Range", "bytes 100-299/5001"),
        ("Content-Range", "bytes 100-299/"),
        ("Content-Range", "bytes 100-299"),
        ("Content-Range", "bytes */5000"),
        ("Content-Range", "items 100-299/5000"),
        ("Content-Range", "bytes 100-299/5000, bytes 300-400/5000"),
        ("Content-Range", "bytes ١٠٠-٢٩٩/5000".encode().decode("latin-1")),
        ("Content-Range", ""),
        ("Content-Encoding", "gzip"),
        ("Content-Encoding", "br"),
    ],
)
def test_an_answer_with_one_field_wrong_is_refused(
    cdn_hub: LocalHub, source: RemoteSource, header: str, value: str
) -> None:
    """The bytes behind it are the right ones."""
    cdn_hub.faults.add(Fault(STORAGE, headers={header: value}, count=99))
    with pytest.raises(SourceError, match=re.escape(f"ckpt/{WEIGHTS}: bytes 100-299 could not be read in 2")):
        read(source, 100, 200)
    cdn_hub.faults.clear()
    assert read(source, 100, 200) == DATA[100:300]


@pytest.mark.parametrize("length", ["199", "0", "+200", " 200 0"])
def test_an_announced_length_that_is_another_is_refused(
    cdn_hub: LocalHub, source: RemoteSource, length: str
) -> None:
    cdn_hub.faults.add(Fault(STORAGE, headers={"Content-Length": length}, count=99))
    with pytest.raises(SourceError, match="could not be read in 2 attempts"):
        read(source, 100, 200)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 100-299/*"},
        {"Content-Range": "  bytes 100-299/5000 "},
        {"Content-Encoding": "identity"},
        {"Content-Encoding": ""},
    ],
)
def test_an_answer_that_says_the_same_otherwise_is_taken(
    cdn_hub: LocalHub, source: RemoteSource, headers: dict[str, str]
) -> None:
    cdn_hub.faults.add(Fault(STORAGE, headers=headers))
    assert read(source, 100, 200) == DATA[100:300]
    assert cdn_hub.faults.pending() == 0


@pytest.mark.parametrize(
    ("offset", "length", "taken"), [(0, 5_000, True), (0, 4_999, False), (1, 4_999, False)]
)
def test_status_200_is_taken_for_the_whole_file_alone(
    cdn_hub: LocalHub, source: RemoteSource, offset: int, length: int, taken: bool
) -> None:
    cdn_hub.faults.add(Fault(STORAGE, ignore_range=True, count=99))
    if taken:
        assert read(source, offset, length) == DATA
    else:
        with pytest.raises(SourceError, match="ignored the Range header"):
            read(source, offset, length)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Repo-Commit", "0" * 40),
        ("X-Linked-Size", "4999"),
        ("X-Linked-Size", "5001"),
        ("X-Linked-ETag", '"' + "0" * 64 + '"'),
    ],
)
def test_what_the_hub_serves_has_to_be_what_it_lists(
    cdn_hub: LocalHub, source: RemoteSource, header: str, value: str
) -> None:
    """Commit, size and hash."""
    cdn_hub.faults.add(Fault("/resolve/", headers={header: value}, count=99))
    what = {"X-Repo-Commit": "commit", "X-Linked-Size": "size", "X-Linked-ETag": "hash"}[header]
    with pytest.raises(HubExtrapError, match=rf"but serves {what}"):
        read(source, 0, 10)


def test_a_hash_of_another_kind_is_not_compared(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault("/resolve/", headers={"X-Linked-ETag": '"' + "0" * 32 + '"'}))
    assert read(source, 0, 10) == DATA[:10]


@pytest.mark.parametrize(("offset", "length"), [(4_999, 2), (5_000, 1), (-1, 1)])
def test_bytes_beyond_the_file_are_not_asked_for(
    cdn_hub: LocalHub, source: RemoteSource, offset: int, length: int
) -> None:
    with pytest.raises(SourceError, match="asked for, but it has 5,000"):
        read(source, offset, length)
    assert not [request for request in cdn_hub.requests if STORAGE in request.path]


def test_the_last_byte_and_none_behind_it(cdn_hub: LocalHub, source: RemoteSource) -> None:
    assert read(source, 4_999, 1) == DATA[-1:]
    (asked,) = [request.headers for request in cdn_hub.requests if STORAGE in request.path]
    assert (asked["Range"], asked["Accept-Encoding"]) == ("bytes=4999-4999", "identity")
    assert read(source, 5_000, 0) == b""


def test_a_file_that_is_read_whole_may_be_just_as_large_as_its_limit(source: RemoteSource) -> None:
    assert source.read_file(WEIGHTS, limit=5_000) == DATA
    with pytest.raises(SourceError, match="5,000 bytes are more than the 4,999"):
        source.read_file(WEIGHTS, limit=4_999)
