"""Every fault that a network can have ends in the right bytes or in one clear error."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from hubextrap.errors import AccessDenied, HubExtrapError, SourceError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import Patience, RemoteSource, remote

WEIGHTS = "model.safetensors"
CDN = "Signature="
"""In the raw path of every request to the storage, and of no other."""
DATA = os.urandom(100_000)
QUICK = Patience(attempts=4, seconds=20, first_wait=0.02, longest_wait=0.05)


@pytest.fixture
def source(cdn_hub: LocalHub, repo_id: str) -> RemoteSource:
    """A source of a file that is read in ten parts, resolved already."""
    cdn_hub.create_repo(repo_id)
    source = RemoteSource(repo_id, cdn_hub.commit(repo_id, {WEIGHTS: DATA}), name="ckpt", patience=QUICK)
    source.read(WEIGHTS, 0, memoryview(bytearray(1)))
    cdn_hub.requests.clear()
    return source


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 10_000)


def read(source: RemoteSource, offset: int = 0, length: int = len(DATA)) -> bytes:
    buffer = bytearray(b"\xee") * length
    source.read(WEIGHTS, offset, memoryview(buffer))
    return bytes(buffer)


def failure(source: RemoteSource, offset: int = 0, length: int = 1000) -> str:
    with pytest.raises(SourceError) as caught:
        read(source, offset, length)
    message = str(caught.value)
    assert message.startswith(f"ckpt/{WEIGHTS}: ")
    assert "Signature" not in message
    return message.removeprefix(f"ckpt/{WEIGHTS}: ")


PASSING = {
    "500": Fault(CDN, status=500, count=3),
    "502": Fault(CDN, status=502, count=3),
    "503": Fault(CDN, status=503, count=3),
    "429": Fault(CDN, status=429, headers={"Retry-After": "0"}, count=3),
    "408": Fault(CDN, status=408, count=3),
    "dropped": Fault(CDN, drop=True, count=3),
    "cut at once": Fault(CDN, truncate=0, count=3),
    "cut in the middle": Fault(CDN, truncate=4_321, count=3),
    "cut before the last byte": Fault(CDN, truncate=9_999, count=3),
    "range ignored": Fault(CDN, ignore_range=True, count=3),
    "range shifted": Fault(CDN, shift_range=1, count=3),
    "range mislabelled": Fault(CDN, headers={"Content-Range": "bytes 7-10006/100000"}, count=3),
    "other total": Fault(CDN, headers={"Content-Range": "bytes 0-9999/100001"}, count=3),
    "no range named": Fault(CDN, headers={"Content-Range": ""}, count=3),
    "compressed": Fault(CDN, headers={"Content-Encoding": "gzip"}, count=3),
    "expired": Fault(CDN, status=403, count=3),
    "gone": Fault(CDN, status=404, count=3),
    "redirected to nowhere": Fault(CDN, status=302, headers={"Location": "/nowhere"}, count=3),
    "slow": Fault(CDN, delay=0.1, count=3),
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_passing_fault_of_the_storage_leaves_no_trace(
    cdn_hub: LocalHub, source: RemoteSource, kind: str
) -> None:
    cdn_hub.faults.add(dataclasses.replace(PASSING[kind]))  # a copy: it is counted down
    assert read(source) == DATA
    assert cdn_hub.faults.pending() == 0


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_passing_fault_of_the_hub_while_resolving(cdn_hub: LocalHub, repo_id: str, status: int) -> None:
    cdn_hub.create_repo(repo_id)
    source = RemoteSource(repo_id, cdn_hub.commit(repo_id, {WEIGHTS: DATA}), patience=QUICK)
    cdn_hub.faults.add(Fault("/resolve/", status=status, count=2))
    cdn_hub.faults.add(Fault("/resolve/", drop=True, count=1))
    assert read(source, 0, 9_000) == DATA[:9_000]
    assert cdn_hub.faults.pending() == 0


def test_what_came_before_a_cut_is_not_asked_for_again(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault(CDN, truncate=4_000))
    assert read(source, 0, 10_000) == DATA[:10_000]
    assert [request.headers["Range"] for request in cdn_hub.requests] == ["bytes=0-9999", "bytes=4000-9999"]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(CDN, status=503, count=99), "the server answered 503"),
        (Fault(CDN, drop=True, count=99), "disconnected without sending a response"),
        (Fault(CDN, truncate=0, count=99), "peer closed connection|ended 1,000 bytes early"),
        (Fault(CDN, ignore_range=True, count=99), r"ignored the Range header \(status 200\); --cache"),
        (
            Fault(CDN, shift_range=1, count=99),
            "bytes 0-999/100000 were asked for, the server sent 'bytes 1-",
        ),
        (Fault(CDN, status=403, count=99), "the server answered 403"),
    ],
)
def test_a_lasting_fault_ends_in_one_error(
    cdn_hub: LocalHub, source: RemoteSource, fault: Fault, cause: str
) -> None:
    cdn_hub.faults.add(fault)
    began = time.monotonic()
    message = failure(source)
    told = re.match(r"bytes 0-999 could not be read in 4 attempts over (\d+) s: ", message)
    assert told is not None, message
    assert int(told[1]) <= round(time.monotonic() - began)
    assert message.endswith("; check the network, then run the same command again")
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(message)
    cdn_hub.faults.clear()
    assert read(source) == DATA


def test_a_range_that_the_storage_does_not_have(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault(CDN, status=416, count=99))
    assert "the server answered 416" in failure(source)


def test_retry_after_is_honoured(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault(CDN, status=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    assert read(source, 0, 1000) == DATA[:1000]
    assert 1.0 <= time.monotonic() - start < 3.0


@pytest.mark.slow
def test_a_retry_date_is_honoured(cdn_hub: LocalHub, source: RemoteSource) -> None:
    start = time.monotonic()
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    cdn_hub.faults.add(Fault(CDN, status=503, headers={"Retry-After": date}))
    assert read(source, 0, 1000) == DATA[:1000]
    assert 0.9 <= time.monotonic() - start < 4.0


def test_a_wait_beyond_patience_is_not_begun(cdn_hub: LocalHub, source: RemoteSource) -> None:
    headers = {"RateLimit": '"resolvers";r=0;t=280'}
    cdn_hub.faults.add(Fault(CDN, status=429, headers=headers, count=99))
    start = time.monotonic()
    assert "the server answered 429; the server asked to wait 280 s" in failure(source)
    assert time.monotonic() - start < 2


def test_the_first_failing_part_ends_the_read(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault(CDN, status=503, count=10_000))
    assert "could not be read" in failure(source, 0, len(DATA))
    assert len(cdn_hub.requests) <= remote.IN_FLIGHT * QUICK.attempts


def test_access_that_was_withdrawn(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault(CDN, status=403, count=99))
    headers = {"X-Error-Code": "GatedRepo"}
    cdn_hub.faults.add(Fault("/resolve/", status=403, headers=headers, count=99))
    with pytest.raises(AccessDenied, match=f"ckpt/{WEIGHTS}: the repo is gated"):
        read(source)


def test_small_files_survive_a_hub_without_ranges(cdn_hub: LocalHub, repo_id: str) -> None:
    cdn_hub.create_repo(repo_id)
    config = b'{"hidden_size": 8}'
    source = RemoteSource(repo_id, cdn_hub.commit(repo_id, {"config.json": config}), patience=QUICK)
    cdn_hub.faults.add(Fault("/resolve/", method="GET", ignore_range=True, truncate=5))
    cdn_hub.faults.add(Fault("/resolve/", method="GET", ignore_range=True, count=99))
    assert source.read_file("config.json") == config


def test_a_listing_that_does_not_match_the_file(cdn_hub: LocalHub, repo_id: str) -> None:
    cdn_hub.create_repo(repo_id)
    commit = cdn_hub.commit(repo_id, {WEIGHTS: DATA})
    for headers, what in [
        ({"X-Linked-Size": "99999"}, "size 100000 but serves size 99999"),
        ({"X-Linked-Etag": '"' + "0" * 64 + '"'}, "but serves hash 000"),
        ({"X-Repo-Commit": "1" * 40}, f"commit {commit} but serves commit 111"),
    ]:
        cdn_hub.faults.clear()
        cdn_hub.faults.add(Fault("/resolve/", headers=headers, count=99))
        source = RemoteSource(repo_id, commit, name="ckpt", patience=QUICK)
        assert what in failure(source)


def test_no_network(cdn_hub: LocalHub, source: RemoteSource) -> None:
    cdn_hub.faults.add(Fault("", drop=True, count=10_000))
    assert "could not be read in 4 attempts" in failure(source)


@pytest.mark.slow
def test_a_thousand_faults(cdn_hub: LocalHub, source: RemoteSource) -> None:
    dice = random.Random(3)
    struck, failures = 0, list[str]()
    while struck < 1_000:
        for _ in range(dice.randint(1, 6)):
            fault = dice.choice(list(PASSING.values()))
            path = dice.choice([CDN, CDN, CDN, "/resolve/"])
            cdn_hub.faults.add(dataclasses.replace(fault, path=path, count=dice.randint(1, 5)))
        pending = cdn_hub.faults.pending()
        start = dice.randrange(len(DATA))
        stop = dice.randint(start, len(DATA))
        try:
            assert read(source, start, stop - start) == DATA[start:stop]
        except HubExtrapError as error:
            failures.append(str(error))
        struck += pending - cdn_hub.faults.pending()
        cdn_hub.faults.clear()
        assert read(source, 0, 100) == DATA[:100]
    assert len(failures) < 200
    assert all(message.startswith(f"ckpt/{WEIGHTS}: ") for message in failures)
