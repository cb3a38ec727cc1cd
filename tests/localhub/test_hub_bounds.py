"""Nobody makes the hub read, hold or answer without bound, least of all without a token."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from raw_requests import address_of, ask, request, status_of

from hubextrap.localhub import LocalHub, inbound, wire
from hubextrap.localhub.cards import card_data
from hubextrap.localhub.signing import Signer

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)
LONG = "a: &a " + "x" * 5_000 + "\nb: [" + ",".join(["*a"] * 5_000) + "]\n"
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "head", [ALIASES, LONG, MERGES, "a: &a [*a]\n", "[" * 5_000, "a: " + "[" * 70 + "]" * 70, "x" * 600_000]
)
def test_a_card_that_grows_is_none(hub: LocalHub, repo_id: str, head: str) -> None:
    hub.create_repo(repo_id)
    readme = f"---\n{head}\n---\n".encode()
    hub.commit(repo_id, {"README.md": readme})  # as a git clone of the hub's folder could bring it
    answer = httpx2.get(f"{hub.url}/api/models/{repo_id}")
    assert answer.status_code == 200
    assert len(answer.content) < 10_000
    checked = httpx2.post(f"{hub.url}/api/validate-yaml", json={"content": readme.decode()})
    assert checked.status_code == 400
    assert len(checked.content) < 10_000


def test_aliases_that_do_not_grow_stay() -> None:
    text = "---\ndatasets: &d [a/b, c/d]\nmore: *d\n---\n"
    assert card_data(text) == {"datasets": ["a/b", "c/d"], "more": ["a/b", "c/d"]}


@pytest.mark.parametrize(
    "path",
    [
        *("commit/main", "branch/x", "tag/main", "super-squash/main", "discussions", "discussions/1/comment"),
        *(
            "discussions/1/comment/0/edit",
            "discussions/1/title",
            "discussions/1/status",
            "discussions/1/merge",
        ),
    ],
)
def test_nobody_waits_for_the_body_of_another(hub: LocalHub, repo_id: str, token: str, path: str) -> None:
    hub.create_repo(repo_id)
    own = ":".join(map(str, address_of(hub)))
    head = f"POST /api/models/{repo_id}/{path} HTTP/1.1\r\nHost: {own}\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection(address_of(hub), timeout=5) as connection:
        connection.sendall(f"{head}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
        assert status_of(connection.recv(1 << 16)) == 100
        free = hub.store.lock.acquire(timeout=0.1)
        if free:
            hub.store.lock.release()
    assert free


def test_a_body_is_not_read_before_its_sender_is_known(hub: LocalHub, repo_id: str) -> None:
    """The answer comes while nothing of the body has been sent."""
    hub.create_repo(repo_id)
    for path, status in (
        (f"/api/models/{repo_id}/commit/main", 401),
        (f"/api/models/{repo_id}/preupload/main", 401),
        ("/api/repos/create", 401),
        (f"/api/models/{repo_id}/discussions", 401),
        ("/api/validate-yaml", 413),
        (f"/api/models/{repo_id}/paths-info/main", 413),
        (f"/{repo_id}.git/git-upload-pack", 413),
        (f"/{repo_id}.git/info/lfs/objects/batch", 413),
        ("/oauth/token", 413),
        (f"/lfs/models/{repo_id}/{'0' * 64}/5", 403),
    ):
        first = f"{'PUT' if path.startswith('/lfs') else 'POST'} {path} HTTP/1.1"
        own = ":".join(map(str, address_of(hub)))
        head = f"{first}\r\nHost: {own}\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection(address_of(hub), timeout=5) as connection:
            connection.sendall(head.encode())
            assert status_of(connection.recv(1 << 16)) == status, path


def test_a_stranger_does_not_write_before_he_is_refused(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    answer = request(
        hub,
        f"POST /api/models/{repo_id}/commit/main",
        f"Authorization: Bearer {hub.add_token('stranger')}",
        "Content-Length: 99999999",
        "Expect: 100-continue",
    )
    assert status_of(answer) == 403


def test_chunks_are_counted(hub: LocalHub) -> None:
    """Without a length, a body ends at the same bound."""
    tracemalloc.start()
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    answer = request(hub, "POST /oauth/token", "Transfer-Encoding: chunked", body=chunk * 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer == b"" or status_of(answer) == 413
    assert peak < 8 * inbound.BODY_MAX + (20 << 20)


def test_who_waits_for_a_word_gets_it(hub: LocalHub) -> None:
    answer = request(hub, "POST /oauth/token", "Expect: 100-continue", "Content-Length: 2", body=b"{}")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"a": "\\u0000"}',
        b"\xff",
        b"[]",
        b"nul",
    ],
)
def test_json_is_bounded(hub: LocalHub, token: str, body: bytes) -> None:
    answer = httpx2.post(
        f"{hub.url}/api/repos/create", content=body, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 400
    assert "Traceback" not in answer.text


def test_lists_are_bounded(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a.txt": b"a"})
    with httpx2.Client(base_url=hub.url, headers={"Authorization": f"Bearer {token}"}) as client:
        api = f"/api/models/{repo_id}"
        same = client.post(f"{api}/paths-info/main", data={"paths": ["a.txt"] * 9_000})
        assert len(same.json()) == 1
        assert client.post(f"{api}/paths-info/main", data={"paths": ["a.txt"] * 11_000}).status_code == 400
        assert client.post(f"{api}/paths-info/main", json={"paths": ["a"] * 11_000}).status_code == 413
        line = json.dumps({"key": "deletedFile", "value": {"path": "x"}}) + "\n"
        assert client.post(f"{api}/commit/main", content=line * 25_002).status_code == 413
        batch = f"/{repo_id}.git/info/lfs/objects/batch"
        objects = [{"oid": f"{number:064x}", "size": 5} for number in range(1_001)]
        asked = {"operation": "upload", "transfers": ["multipart"], "objects": objects}
        assert client.post(batch, json=asked).status_code == 413
        huge = [{"oid": "0" * 64, "size": 10**15 - 1}]
        assert client.post(batch, json={**asked, "objects": huge}).status_code == 413


def test_an_object_that_does_not_fit_the_disk_is_not_begun(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id)
    asked = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 10**15 - 1}]}
    answer = httpx2.post(
        f"{hub.url}/{repo_id}.git/info/lfs/objects/batch",
        json=asked,
        headers={"Authorization": f"Bearer {token}"},
    )
    link = answer.json()["objects"][0]["actions"]["upload"]["href"]
    assert httpx2.put(link, content=b"x").status_code == 507


def test_a_part_is_no_larger_than_parts_are(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.part_size, before = 100, hub.part_size
    try:
        asked = {
            "operation": "upload",
            "transfers": ["multipart"],
            "objects": [{"oid": "1" * 64, "size": 150}],
        }
        answer = httpx2.post(
            f"{hub.url}/{repo_id}.git/info/lfs/objects/batch",
            json=asked,
            headers={"Authorization": f"Bearer {token}"},
        )
        action = answer.json()["objects"][0]["actions"]["upload"]
        assert httpx2.put(action["header"]["00001"], content=b"x" * 101).status_code == 413
        other = action["header"]["00001"].replace("/150/1?", "/150/2?")
        assert httpx2.put(other, content=b"x").status_code == 403
    finally:
        hub.part_size = before


@pytest.fixture
def other_hub(tmp_path: Path) -> Iterator[LocalHub]:
    """One whose connections no other test uses."""
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def test_a_head_that_drips_is_cut(other_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "_HEAD_SECONDS", 0.3)
    started = time.monotonic()
    with socket.create_connection(address_of(other_hub), timeout=5) as connection:
        connection.sendall(b"GET /")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 4:
                time.sleep(0.05)
                connection.sendall(b"x")
    assert time.monotonic() - started < 3


def test_a_body_that_drips_is_cut(other_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "IDLE_SECONDS", 0.2)
    started = time.monotonic()
    own = ":".join(map(str, address_of(other_hub)))
    with socket.create_connection(address_of(other_hub), timeout=5) as connection:
        connection.sendall(f"POST /oauth/token HTTP/1.1\r\nHost: {own}\r\nContent-Length: 9\r\n\r\n".encode())
        assert connection.recv(100) == b""
    assert time.monotonic() - started < 3


def test_headers_are_bounded(hub: LocalHub) -> None:
    assert status_of(request(hub, "GET /", *(f"A{number}: x" for number in range(70)))) == 431
    assert status_of(request(hub, "GET /", "A: " + "x" * 40_000)) == 431
    assert status_of(request(hub, "GET /" + "x" * 9_000)) == 414


def test_there_are_so_many_connections_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_CONNECTIONS_MAX", 4)
    with LocalHub(tmp_path / "hub") as hub:
        held = [socket.create_connection(address_of(hub)) for _ in range(4)]
        deadline = time.monotonic() + 5
        while threading.active_count() < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status_of(ask(hub, b"")) == 503
        for connection in held:
            connection.close()
        while status_of(request(hub, "GET /api/models")) != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status_of(request(hub, "GET /api/models")) == 200


def test_a_signed_link_opens_what_it_names_and_nothing_else(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id, private=True)
    hub.commit(repo_id, {"w.safetensors": b"\0" * 64})
    (found,) = (hub.store.root / "models" / f"{repo_id}.git" / "lfs").glob("??/*")
    asked = {"operation": "download", "objects": [{"oid": found.name, "size": 64}]}
    answer = httpx2.post(
        f"{hub.url}/{repo_id}.git/info/lfs/objects/batch",
        json=asked,
        headers={"Authorization": f"Bearer {token}"},
    )
    link = answer.json()["objects"][0]["actions"]["download"]["href"]
    assert httpx2.get(link).content == b"\0" * 64
    for method, changed in (
        ("PUT", link),
        ("POST", link),
        ("GET", link.replace("/64?", "/63?")),
        ("GET", link.replace("Expires=", "Expires=9")),
        ("GET", link + "&x=1"),
        ("GET", link + "%C3%A9"),
        ("GET", link.replace("download=1", "download=0")),
        ("GET", link.rpartition("&")[0]),
        ("GET", link.replace(found.name, "0" * 64)),
    ):
        assert httpx2.request(method, changed).status_code in (403, 404), changed
    assert not Signer().valid(link)
    own = Signer()
    assert own.valid(own.sign("/x", 60))
    assert not own.valid(own.sign("/x", -1))
    assert not own.valid("/x&Signature=\xe9")


def test_a_jobs_token_ends(hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo(repo_id, private=True)
    hub.trust(repo_id, "identity")
    body = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": "identity",
        "resource": repo_id,
    }
    for odd in ("", "identit", "identity\u00e9", ["identity"], None, 1):
        assert httpx2.post(f"{hub.url}/oauth/token", json={**body, "subject_token": odd}).status_code == 400
    token = httpx2.post(f"{hub.url}/oauth/token", json=body).json()["access_token"]
    asked = {"Authorization": f"Bearer {token}"}
    assert httpx2.get(f"{hub.url}/api/models/{repo_id}", headers=asked).status_code == 200
    now = time.time()
    monkeypatch.setattr("hubextrap.localhub.access.time.time", lambda: now + 3601)
    assert httpx2.get(f"{hub.url}/api/models/{repo_id}", headers=asked).status_code == 401


@pytest.mark.parametrize("token", ["", "hf_\xe9", "hf_", "x" * 5_000, "hf_testtokentesttokentesttoke"])
def test_no_odd_token_is_one(hub: LocalHub, token: str) -> None:
    for header in (
        f"Authorization: Bearer {token}",
        f"Authorization: Basic {token}",
        f"Authorization: {token}",
    ):
        assert status_of(request(hub, "GET /api/whoami-v2", header)) == 401
