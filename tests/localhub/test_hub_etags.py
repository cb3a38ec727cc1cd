"""ETags of what the API lists, and 304 to who has it already."""

from __future__ import annotations

import base64
import hashlib

import httpx2
import pytest
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub


@pytest.fixture
def listed(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"config.json": b"{}"}, revision="step_100")
    return repo_id


@pytest.mark.parametrize(
    "path",
    [
        "models/{repo}",
        "models/{repo}/revision/step_100",
        "models/{repo}/refs",
        "models/{repo}/tree/step_100?recursive=true",
        "models/{repo}/commits/step_100",
        "models?author=me&search={name}&expand=sha",
    ],
)
def test_a_change_alone_is_told(hub: LocalHub, listed: str, path: str) -> None:
    address = f"{hub.url}/api/{path.format(repo=listed, name=listed.partition('/')[2])}"
    first = httpx2.get(address)
    digest = base64.b64encode(hashlib.sha1(first.content).digest()).decode()[:27]
    assert first.headers["ETag"] == f'W/"{len(first.content):x}-{digest}"'  # as npm's etag writes it
    again = httpx2.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert not {"content-length", "content-type"} & set(again.headers)
    branch = "main" if "revision" not in path and "/t" not in path and "/c" not in path else "step_100"
    hub.commit(listed, {"more.json": b"{}"}, revision=branch)
    changed = httpx2.get(address, headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status_code == 200
    assert changed.content != first.content
    assert changed.headers["ETag"] != first.headers["ETag"]


def test_which_tags_are_known(hub: LocalHub, listed: str) -> None:
    address = f"{hub.url}/api/models/{listed}/refs"
    tag = httpx2.get(address).headers["ETag"]
    strong = tag.removeprefix("W/")
    with httpx2.Client() as client:  # one connection: a 304 leaves nothing unread on it
        for value, status in (
            (strong, 304),
            (f'"x", {tag}', 304),
            ("*", 304),
            ('W/"x"', 200),
            (strong.strip('"'), 200),
            ("", 200),
        ):
            assert client.get(address, headers={"If-None-Match": value}).status_code == status, value
        fresh = {"If-None-Match": tag, "Cache-Control": "no-cache"}
        assert client.get(address, headers=fresh).status_code == 200
        assert client.head(address, headers={"If-None-Match": tag}).status_code == 304


def test_nothing_is_told_to_who_may_not_see_it(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id, private=True)
    address = f"{hub.url}/api/models/{repo_id}/refs"
    tag = httpx2.get(address, headers={"Authorization": f"Bearer {token}"}).headers["ETag"]
    assert httpx2.get(address, headers={"If-None-Match": tag}).status_code == 401


def test_each_page_has_its_own(hub: LocalHub, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "page_size", 1)
    hub.commit(listed, {"more.json": b"{}"}, revision="step_100")
    first = httpx2.get(f"{hub.url}/api/models/{listed}/tree/step_100")
    again = httpx2.get(str(first.url), headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert again.headers["Link"] == first.headers["Link"]
    following = httpx2.get(first.links["next"]["url"], headers={"If-None-Match": first.headers["ETag"]})
    assert following.status_code == 200


@pytest.mark.slow
def test_buckets(hub: LocalHub, api: HfApi, token: str, repo_id: str) -> None:
    api.create_bucket(repo_id)
    headers = {"Authorization": f"Bearer {token}"}
    for path in ("", "/tree?recursive=true"):
        address = f"{hub.url}/api/buckets/{repo_id}{path}"
        tag = httpx2.get(address, headers=headers).headers["ETag"]
        assert httpx2.get(address, headers={**headers, "If-None-Match": tag}).status_code == 304
        api.batch_bucket_files(repo_id, add=[(b"1" * (1 + len(path)), f"file{len(path)}")])
        assert httpx2.get(address, headers={**headers, "If-None-Match": tag}).status_code == 200
