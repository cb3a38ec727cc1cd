"""A web page in a browser of this machine gets nothing from the hub and changes nothing there."""

from __future__ import annotations

import httpx2
import pytest
from raw_requests import address_of, request, status_of

from hubextrap.localhub import LocalHub

PAGE = "<script>alert(1)</script>"


@pytest.fixture
def repo(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"page.html": PAGE.encode(), "a.txt": b"a", "w.safetensors": b"\0" * 64})
    return repo_id


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:{port}", "localhost.evil.example:{port}", "127.0.0.1.nip.io:{port}"),
        *("127.0.0.1", "127.0.0.1:1", "127.1:{port}", "2130706433:{port}", "127.0.0.2:{port}"),
        *("127.0.0.1:{port}@evil.example", "me@127.0.0.1:{port}", "127.0.0.1:{port}/x", "[::]:{port}"),
        *("localhost.:{port}", "127.0.0.1:{port} ,evil.example", "\xe9:{port}", "[::ffff:127.0.0.1]:{port}"),
    ],
)
def test_another_host_is_refused(hub: LocalHub, repo: str, host: str) -> None:
    """A name that its owner lets resolve to 127.0.0.1 would make his page one of the hub."""
    _, port = address_of(hub)
    for first in (f"GET /{repo}/resolve/main/a.txt", f"GET /api/models/{repo}", "GET /", "POST /oauth/token"):
        answer = request(hub, first, f"Host: {host.format(port=port)}", host=False)
        assert status_of(answer) == 421


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}", "127.0.0.1:{port}"])
def test_its_own_names_are_not(hub: LocalHub, repo: str, host: str) -> None:
    _, port = address_of(hub)
    answer = request(hub, f"GET /{repo}/resolve/main/a.txt", f"Host: {host.format(port=port)}", host=False)
    assert status_of(answer) == 200


def test_what_it_was_told_to_listen_on_is_its_name(tmp_path: object) -> None:
    with LocalHub(tmp_path / "hub", host="0.0.0.0") as hub:  # type: ignore[operator]
        port = hub.url.rpartition(":")[2]
        asked = {
            host: httpx2.get(f"http://127.0.0.1:{port}/api/models", headers={"Host": f"{host}:{port}"})
            for host in ("0.0.0.0", "127.0.0.1", "localhost", "evil.example")
        }
        assert [answer.status_code for answer in asked.values()] == [200, 200, 200, 421]


def test_a_request_without_a_host_or_with_two_is_refused(hub: LocalHub) -> None:
    own = ":".join(map(str, address_of(hub)))
    assert status_of(request(hub, "GET /api/models", host=False)) == 400
    assert status_of(request(hub, "GET /api/models", "Host: evil.example")) == 400
    assert status_of(request(hub, f"GET http://{own}/api/models")) == 400


@pytest.mark.parametrize(
    "header",
    [
        *("Origin: http://evil.example", "Origin: null", "Origin: http://localhost:3000", "Origin: "),
        *("Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: x"),
        "Origin: http://127.0.0.1",
    ],
)
def test_another_page_reads_and_changes_nothing(hub: LocalHub, repo: str, token: str, header: str) -> None:
    for first in (
        f"GET /{repo}/resolve/main/a.txt",
        f"DELETE /api/models/{repo}/branch/x",
        "POST /oauth/token",
        "POST /api/validate-yaml",
    ):
        answer = request(hub, first, header, f"Authorization: Bearer {token}")
        assert status_of(answer) == 403
    assert status_of(request(hub, "OPTIONS /api/models", header)) in (403, 405)


def test_a_browser_that_is_sent_by_its_user_may_look(hub: LocalHub, repo: str) -> None:
    own = ":".join(map(str, address_of(hub)))
    for header in ("Sec-Fetch-Site: none", "Sec-Fetch-Site: same-origin", f"Origin: http://{own}"):
        assert status_of(request(hub, f"GET /{repo}/resolve/main/a.txt", header)) == 200


def test_no_answer_is_a_page_or_lends_itself_to_one(hub: LocalHub, repo: str) -> None:
    paths = [f"/{repo}/resolve/main/{name}" for name in ("page.html", "w.safetensors", "absent")]
    for path in (*paths, f"/api/models/{repo}", "/", "/%zz", "/<script>"):
        answer = httpx2.get(hub.url + path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "html" not in answer.headers["Content-Type"]
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert httpx2.get(hub.url + paths[0]).headers["Content-Disposition"].startswith("attachment;")
