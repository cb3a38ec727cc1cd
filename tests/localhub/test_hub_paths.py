"""A path names one file or none: what reads in two ways is refused, by path, by body and by git."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx2
import pytest
from raw_requests import request, status_of

from hubextrap.localhub import LocalHub

SECRET = b"not yours"


@pytest.fixture
def repo(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a.txt": SECRET, "folder/b.txt": SECRET, "w.safetensors": SECRET * 8})
    return repo_id


@pytest.mark.parametrize(
    "path",
    [
        *("a.txt%00.exe", "a.txt%00", "folder%00/../a.txt", "a.txt%0a", "a.txt%7f", "a.txt%C2%85"),
        *(
            "..%2fa.txt",
            "folder/../a.txt",
            "folder/%2e%2e/a.txt",
            "folder%2f..%2fa.txt",
            "./a.txt",
            "%2e/a.txt",
        ),
        *("folder//b.txt", "/a.txt", "%2fa.txt", "folder%2f%2fb.txt", "a.txt/", "a.txt%2f", "a.txt/."),
        *(
            "%252e%252e/a.txt",
            "%c0%ae%c0%ae/a.txt",
            "%e0%80%ae/a.txt",
            "%ff",
            "%ed%a0%80",
            "a.txt%",
            "a.txt%0",
        ),
        *(
            "a%5c..%5ca.txt",
            "..%5ca.txt",
            "A.TXT",
            "a.txt.",
            "a.txt%20",
            "a.txt;x",
            "a.txt%3fx",
            ".git/config",
        ),
        *("a.txt%u0000", "folder", "a", "%61.tx", "a.txt%09"),
    ],
)
def test_no_odd_path_is_a_file(hub: LocalHub, repo: str, path: str) -> None:
    answer = request(hub, f"GET /{repo}/resolve/main/{path}")
    assert status_of(answer) in (400, 404)
    assert SECRET not in answer
    listed = request(hub, f"GET /api/models/{repo}/tree/main/{path}")
    assert status_of(listed) in (400, 404) or path == "folder"


@pytest.mark.parametrize(
    "revision",
    [
        *("main%00", "main%00x", "main%0a", "refs%2Fheads%2Fmain%00", "refs%2fheads%2f..%2fheads%2fmain"),
        *("..", "%2e%2e", "main%2f..", "main~0", "main@%7b0%7d", "HEAD", "main%5e", "refs%2Fheads", "-main"),
        *("refs%2Fhub", "main:a.txt", "MAIN", "main.lock", "%c0", ":x", "%2e", "main%20", "~", "FETCH_HEAD"),
    ],
)
def test_no_odd_revision_is_one(hub: LocalHub, repo: str, revision: str) -> None:
    for path in (f"/{repo}/resolve/{revision}/a.txt", f"/api/models/{repo}/revision/{revision}"):
        answer = request(hub, f"GET {path}")
        assert status_of(answer) in (400, 404)
        assert SECRET not in answer


@pytest.mark.parametrize(
    "name", ["me%00", "me/..", "..%2f..", "me%2fx", "me/x%00", "me/%2e%2e", "me/x.git%00"]
)
def test_no_odd_name_is_a_repo(hub: LocalHub, name: str) -> None:
    for path in (
        f"/{name}/resolve/main/a.txt",
        f"/api/models/{name}",
        f"/{name}/info/refs?service=git-upload-pack",
    ):
        assert status_of(request(hub, f"GET {path}")) in (400, 401, 404)


def test_names_in_bodies_are_read_one_way_too(hub: LocalHub, repo: str, token: str) -> None:
    with httpx2.Client(base_url=hub.url, headers={"Authorization": f"Bearer {token}"}) as client:
        check_bodies(client, repo)


def check_bodies(client: httpx2.Client, repo: str) -> None:
    api = f"/api/models/{repo}"
    for path in ("a.txt\0.exe", "folder/../a.txt", "/a.txt", "folder//b.txt", "\ud800"):
        found = client.post(f"{api}/paths-info/main", content=json.dumps({"paths": [path]}))
        assert found.status_code == 400 or found.json() == []
        found = client.post(f"{api}/preupload/main", json=json.loads(json.dumps({"files": [{"path": "x"}]})))
        assert found.status_code == 400
        line = json.dumps({"key": "file", "value": {"path": path, "content": "x"}})
        assert client.post(f"{api}/commit/main", content=line).status_code in (400, 422)
    for name in ("main\0", "x\0y", "a..b", "\ud800", "../x"):
        made = client.post(f"{api}/tag/main", content=json.dumps({"tag": name}))
        assert made.status_code == 400
    assert client.post(f"{api}/branch/x%00y", json={}).status_code == 400
    assert client.post(f"{api}/branch/x", json={"startingPoint": 5}).status_code == 404
    assert client.delete(f"{api}/branch/main%00").status_code == 400
    assert [ref["name"] for ref in client.get(f"{api}/refs").json()["branches"]] == ["main"]


def test_a_name_cannot_add_a_header(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {'a"; x=".txt': b"a", "ü.txt": b"u"})
    for name in ("a%22%3B%20x%3D%22.txt", "%C3%BC.txt"):
        answer = httpx2.get(f"{hub.url}/{repo_id}/resolve/main/{name}")
        assert answer.status_code == 200
        assert answer.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{name}"


def test_a_link_in_the_store_leads_nowhere(tmp_path: Path) -> None:
    """A hub's folder may have come as an archive."""
    outside = tmp_path / "token"
    outside.write_bytes(SECRET * 8)
    with LocalHub(tmp_path / "hub") as hub:
        for name in ("me/file", "me/folder", "me/repo", "me/borrowed"):
            hub.create_repo(name)
            hub.commit(name, {"w.safetensors": SECRET * 8})
        store = hub.store.root / "models" / "me"
        (found,) = (path for path in (store / "file.git" / "lfs").glob("??/*"))
        found.unlink()
        found.symlink_to(outside)
        (folder,) = (path for path in (store / "folder.git" / "lfs").glob("??"))
        folder.rename(tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
        (store / "repo.git").rename(tmp_path / "repo.git")
        (store / "repo.git").symlink_to(tmp_path / "repo.git")
        alternates = store / "borrowed.git" / "objects" / "info" / "alternates"
        alternates.parent.mkdir(exist_ok=True)
        alternates.write_text(str(tmp_path))
        for name in ("me/file", "me/folder", "me/repo", "me/borrowed"):
            answer = request(hub, f"GET /{name}/resolve/main/w.safetensors")
            assert status_of(answer) in (401, 404)
            assert SECRET not in answer


def test_only_its_user_reads_what_it_keeps(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        hub = LocalHub(tmp_path / "hub")
        (tmp_path / "mine").mkdir(mode=0o755)
        other = LocalHub(tmp_path / "mine")
        other.create_repo("me/x")
    finally:
        os.umask(before)
    for opened in (hub, other):
        opened.stop()
    assert hub.store.root.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o755  # the user's own folder stays as it is
    assert (tmp_path / "mine" / "models").stat().st_mode & 0o777 == 0o700
