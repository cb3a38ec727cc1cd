"""Faults, the request log, and the CDN."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import Fault, LocalHub

WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def weights_url(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"model.safetensors": WEIGHTS})
    return f"{hub.url}/{repo_id}/resolve/main/model.safetensors"


def test_a_status_with_headers_counts_down(hub: LocalHub, weights_url: str) -> None:
    hub.faults.add(Fault(path=r"/resolve/", method="GET", status=429, headers={"Retry-After": "7"}, count=2))
    assert httpx2.head(weights_url).status_code == 200
    for _ in range(2):
        answer = httpx2.get(weights_url)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert hub.faults.pending() == 0
    assert httpx2.get(weights_url).content == WEIGHTS
    assert [(request.method, request.status) for request in hub.requests] == [
        ("HEAD", 200),
        ("GET", 429),
        ("GET", 429),
        ("GET", 200),
    ]
    assert {request.port for request in hub.requests} == {int(hub.url.rpartition(":")[2])}


def test_a_truncated_body(hub: LocalHub, weights_url: str) -> None:
    hub.faults.add(Fault(path=r"\.safetensors$", truncate=1000))
    with httpx2.stream("GET", weights_url) as answer:
        assert answer.headers["Content-Length"] == str(len(WEIGHTS))
        chunks = answer.iter_raw()
        assert next(chunks) == WEIGHTS[:1000]
        with pytest.raises(httpx2.RemoteProtocolError):
            next(chunks)
    assert httpx2.get(weights_url).content == WEIGHTS


def test_a_range_that_is_ignored_or_wrong(hub: LocalHub, weights_url: str) -> None:
    wanted = {"Range": "bytes=10-19"}
    hub.faults.add(Fault(path="resolve", ignore_range=True))
    hub.faults.add(Fault(path="resolve", shift_range=5))
    hub.faults.add(Fault(path="resolve", headers={"Content-Range": "bytes 0-9/256000"}))
    whole = httpx2.get(weights_url, headers=wanted)
    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    shifted = httpx2.get(weights_url, headers=wanted)
    assert (shifted.headers["Content-Range"], shifted.content) == ("bytes 15-24/256000", WEIGHTS[15:25])
    lied = httpx2.get(weights_url, headers=wanted)
    assert (lied.headers["Content-Range"], lied.content) == ("bytes 0-9/256000", WEIGHTS[10:20])


def test_a_dropped_connection_and_a_slow_answer(hub: LocalHub, weights_url: str) -> None:
    hub.faults.add(Fault(path="resolve", drop=True))
    hub.faults.add(Fault(path="resolve", delay=0.1))
    with pytest.raises(httpx2.TransportError):
        httpx2.get(weights_url)
    assert hub.requests[-1].status == 0
    started = time.monotonic()
    assert httpx2.get(weights_url).content == WEIGHTS
    assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize(
    "lost", [Fault("/commit/", status=504, after=True), Fault("/commit/", drop=True, after=True)]
)
def test_a_commit_that_lands_although_its_answer_is_lost(
    hub: LocalHub, token: str, repo_id: str, lost: Fault
) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(**{**vars(lost), "count": 1}))
    api = HfApi(token=token)
    with pytest.raises(httpx2.HTTPError):
        api.upload_file(repo_id=repo_id, path_or_fileobj=b"x", path_in_repo="x.txt")
    assert api.list_repo_files(repo_id) == [".gitattributes", "x.txt"]


def test_a_bad_pattern_is_an_error_at_once(hub: LocalHub) -> None:
    with pytest.raises(Exception, match="unterminated"):
        hub.faults.add(Fault(path="(", status=500))
    assert hub.faults.pending() == 0


@pytest.fixture
def cdn_hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", cdn=True, cdn_expiry=10.0) as hub:
        hub.create_repo("me/model", private=True)
        hub.commit("me/model", {"config.json": b"{}", "model.safetensors": WEIGHTS})
        yield hub


def test_weights_come_from_another_origin_without_the_token(cdn_hub: LocalHub, tmp_path: Path) -> None:
    token = cdn_hub.add_token("me")
    api = HfApi(endpoint=cdn_hub.url, token=token)
    folder = Path(api.snapshot_download("me/model", local_dir=tmp_path / "download"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    on_cdn = [request for request in cdn_hub.requests if request.port == cdn_hub.cdn_port]
    assert [request.status for request in on_cdn] == [200]
    assert "authorization" not in on_cdn[0].headers
    assert any("authorization" in request.headers for request in cdn_hub.requests)


def test_links_to_the_cdn_expire(cdn_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's clock, which stands still here until it is put on."""
    now = time.time()
    monkeypatch.setattr("hubextrap.localhub.signing.time", SimpleNamespace(time=lambda: now))
    headers = {"Authorization": f"Bearer {cdn_hub.add_token('me')}"}
    url = f"{cdn_hub.url}/me/model/resolve/main/model.safetensors"
    redirect = httpx2.head(url, headers=headers)
    assert redirect.status_code == 302
    assert (redirect.headers["X-Linked-Size"], len(redirect.headers["X-Repo-Commit"])) == ("256000", 40)
    link = redirect.headers["Location"]
    part = httpx2.get(link, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, WEIGHTS[5:10])
    other = link.replace("/lfs/models/me/model/", "/lfs/models/me/other/")
    assert httpx2.get(other).status_code == httpx2.get(link[:-1] + "x").status_code == 403
    cdn_hub.faults.add(Fault(path="^/lfs/", status=503))
    assert httpx2.get(link).status_code == 503
    now += 9.99
    assert httpx2.get(link).status_code == 200
    now += 0.02
    expired = httpx2.get(link)
    assert expired.status_code == 403
    assert "X-Error-Code" not in expired.headers


def test_headers_cannot_be_injected(hub: LocalHub, weights_url: str) -> None:
    answer = httpx2.get(weights_url.replace("/main/", "/a%0d%0aSet-Cookie:%20x=1/"))
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "broken",
    [
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: many\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nmany\r\n",
        b"Content-Length: 100\r\n\r\nshort",
    ],
)
def test_a_broken_request_ends_its_connection_only(hub: LocalHub, weights_url: str, broken: bytes) -> None:
    host, port = hub.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        first = f"POST /api/validate-yaml HTTP/1.1\r\nHost: {host}:{port}\r\n".encode()
        connection.sendall(first + broken)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
    assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert httpx2.get(weights_url).content == WEIGHTS
