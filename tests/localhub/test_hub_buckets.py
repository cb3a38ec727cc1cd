"""Buckets, through the client as it is; uploads and downloads go over Xet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import BucketNotFoundError, EntryNotFoundError, HfHubHTTPError

from hubextrap.localhub import LocalHub

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(api: HfApi, repo_id: str) -> str:
    url = api.create_bucket(repo_id, private=True)
    assert url.bucket_id == repo_id
    return repo_id


def put(api: HfApi, bucket: str, **files: bytes) -> None:
    api.batch_bucket_files(bucket, add=[(content, path) for path, content in files.items()])


def test_made_listed_and_deleted(api: HfApi, bucket: str) -> None:
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_bucket(bucket)
    assert api.create_bucket(bucket, exist_ok=True).bucket_id == bucket
    api.batch_bucket_files(bucket, add=[(b"12345", "a/one"), (b"", "empty")])
    info = api.bucket_info(bucket)
    assert (info.id, info.private, info.size, info.total_files) == (bucket, True, 5, 2)
    assert bucket in [found.id for found in api.list_buckets("me")]
    assert [found.id for found in api.list_buckets("me", search=bucket.partition("/")[2].upper())] == [bucket]
    api.delete_bucket(bucket)
    with pytest.raises(BucketNotFoundError):
        api.bucket_info(bucket)
    with pytest.raises(BucketNotFoundError):
        api.delete_bucket(bucket)
    api.delete_bucket(bucket, missing_ok=True)


def test_files_come_back_over_xet(api: HfApi, bucket: str, hub: LocalHub, tmp_path: Path) -> None:
    """From bytes and from a file, in batches of their own; one larger than a chunk, one empty."""
    large = os.urandom(400_000)
    (tmp_path / "large.bin").write_bytes(large)
    api.batch_bucket_files(bucket, add=[(tmp_path / "large.bin", "deep/large.bin"), (b"", "empty")])
    put(api, bucket, small=b"small")
    hub.requests.clear()
    names = {"deep/large.bin": large, "small": b"small", "empty": b""}
    api.download_bucket_files(bucket, [(name, tmp_path / "got" / name) for name in names])
    assert {name: (tmp_path / "got" / name).read_bytes() for name in names} == names
    assert [r.path for r in hub.requests if r.method == "GET"] == [f"/api/buckets/{bucket}/xet-read-token"]
    put(api, bucket, small=b"other")
    api.download_bucket_files(bucket, [("small", tmp_path / "got" / "small")])
    assert (tmp_path / "got" / "small").read_bytes() == b"other"
    with pytest.raises(EntryNotFoundError):
        api.download_bucket_files(bucket, [("no", tmp_path / "no")], raise_on_missing_files=True)


def test_trees_and_paths(api: HfApi, bucket: str) -> None:
    paths = ("done/1.json", "done/deep/2.json", "doner/3.json", "plan.json")
    api.batch_bucket_files(bucket, add=[(path.encode(), path) for path in paths])
    every = [found.path for found in api.list_bucket_tree(bucket, recursive=True)]
    assert every == list(paths)
    top = [(found.type, found.path) for found in api.list_bucket_tree(bucket)]
    assert top == [("directory", "done"), ("directory", "doner"), ("file", "plan.json")]
    inside = [found.path for found in api.list_bucket_tree(bucket, prefix="done")]
    assert inside == ["done/1.json", "done/deep"]
    assert list(api.list_bucket_tree(bucket, prefix="no")) == []
    (found,) = api.get_bucket_paths_info(bucket, ["plan.json", "done", "no"])
    assert (found.path, found.size, len(found.xet_hash)) == ("plan.json", 9, 64)
    assert found.mtime is not None
    api.batch_bucket_files(bucket, delete=["plan.json", "no"], add=[(b"x", "done/1.json")])
    assert [found.path for found in api.list_bucket_tree(bucket, recursive=True)] == list(paths[:3])


def test_the_file_system_and_plain_http_read_it(api: HfApi, bucket: str, hub: LocalHub, token: str) -> None:
    put(api, bucket, plan=b"0123456789")
    files = HfFileSystem(endpoint=hub.url, token=token)
    assert files.ls(f"buckets/{bucket}", detail=False) == [f"buckets/{bucket}/plan"]
    assert files.cat_file(f"buckets/{bucket}/plan", start=2, end=5) == b"234"
    address = f"{hub.url}/buckets/{bucket}/resolve/plan"
    headers = {"Authorization": f"Bearer {token}", "Range": "bytes=3-4"}
    answer = httpx2.get(address, headers=headers)
    assert (answer.status_code, answer.content) == (206, b"34")
    assert httpx2.get(f"{address}-no", headers=headers).headers["X-Error-Code"] == "EntryNotFound"


def test_who_may(api: HfApi, stranger: HfApi, anonymous: HfApi, bucket: str, hub: LocalHub) -> None:
    """A private bucket is none to others; a public one is read by all, and written by its owner."""
    put(api, bucket, plan=b"x")
    for other in (stranger, anonymous):
        with pytest.raises(BucketNotFoundError):
            other.bucket_info(bucket)
        with pytest.raises(BucketNotFoundError):
            list(other.list_bucket_tree(bucket))
        assert bucket not in [found.id for found in other.list_buckets("me")]
        assert httpx2.get(f"{hub.url}/buckets/{bucket}/resolve/plan").status_code == 401
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.create_bucket("me/another")
    public = f"{bucket}-public"
    api.create_bucket(public)
    put(api, public, plan=b"x")
    assert anonymous.bucket_info(public).total_files == 1
    for path in ("xet-write-token", "batch"):
        method = "GET" if path == "xet-write-token" else "POST"
        headers = {"Authorization": f"Bearer {stranger.token}"}
        answer = httpx2.request(method, f"{hub.url}/api/buckets/{public}/{path}", headers=headers)
        assert answer.status_code == 403
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.delete_bucket(public)


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        ({"type": "addFile", "path": "a", "xetHash": "ab" * 32, "mtime": 1}, 422),
        ({"type": "addFile", "path": "a", "xetHash": "../../x", "mtime": 1}, 422),
        ({"type": "addFile", "path": "../a", "xetHash": "0" * 64, "mtime": 1}, 422),
        ({"type": "addFile", "path": "a/", "xetHash": "0" * 64, "mtime": 1}, 422),
        ({"type": "addFile", "path": "a", "xetHash": "0" * 64, "mtime": 10**30}, 400),
        ({"type": "addFile", "path": "a", "xetHash": "0" * 64, "mtime": "now"}, 400),
        ({"type": "copyFile", "path": "a", "xetHash": "0" * 64}, 400),
        ({}, 422),
    ],
)
def test_operations_that_are_none(
    operation: dict[str, Any], status: int, api: HfApi, bucket: str, hub: LocalHub, token: str
) -> None:
    answer = httpx2.post(
        f"{hub.url}/api/buckets/{bucket}/batch", json=operation, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == status, answer.text
    assert api.bucket_info(bucket).total_files == 0


def test_what_fails_leaves_the_rest(api: HfApi, bucket: str, hub: LocalHub, token: str) -> None:
    lines = b'{"type":"addFile","path":"ok","xetHash":"%s","mtime":1}\n{"type":"deleteFile","path":".."}' % (
        b"0" * 64
    )
    answer = httpx2.post(
        f"{hub.url}/api/buckets/{bucket}/batch", content=lines, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200
    assert [failure["path"] for failure in answer.json()["failed"]] == [".."]
    assert [found.path for found in api.list_bucket_tree(bucket)] == ["ok"]


def test_a_hub_started_again_has_its_buckets(tmp_path: Path) -> None:
    for _ in range(2):
        with LocalHub(tmp_path / "hub", tokens={"hf_w": "you"}) as hub:
            api = HfApi(endpoint=hub.url, token="hf_w")
            bucket = api.create_bucket("kept", exist_ok=True).bucket_id
            assert bucket == "you/kept"
            api.batch_bucket_files(bucket, add=[(b"x", os.urandom(4).hex())])
    assert api_count(tmp_path) == 2


def api_count(folder: Path) -> int:
    with LocalHub(folder / "hub", tokens={"hf_w": "you"}) as hub:
        return HfApi(endpoint=hub.url, token="hf_w").bucket_info("you/kept").total_files
