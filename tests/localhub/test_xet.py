"""Xet uploads and downloads through local stores.

The client decides on Xet when it is imported, so it runs in processes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, RepoFile
from kinds_of_runs import DEMO

from hubextrap.localhub import LocalHub

WEIGHTS = os.urandom(300_000)


@pytest.fixture(scope="module")
def xet_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("xet") / "hub", tokens={"hf_xet": "me"}, xet=True) as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(xet_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repo whose weights one process pushed by Xet, in two commits, and read back by Xet."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "a.safetensors").write_bytes(WEIGHTS)
    (folder / "b.safetensors").write_bytes(WEIGHTS[::-1])
    (folder / "config.json").write_text("{}")
    run_client(
        xet_hub,
        """
        api.create_repo("me/xet")
        api.upload_folder(repo_id="me/xet", folder_path=sys.argv[1])
        api.create_commit("me/xet", [CommitOperationAdd("c.safetensors", b"c" * 100_000)], commit_message="c")
        got = Path(api.snapshot_download("me/xet"))
        assert (got / "a.safetensors").read_bytes() == Path(sys.argv[1], "a.safetensors").read_bytes()
        assert (got / "c.safetensors").read_bytes() == b"c" * 100_000
        """,
        str(folder),
    )
    return "me/xet"


def run_client(hub: LocalHub, script: str, *arguments: str, **environment: str) -> None:
    lines = [
        "import sys",
        "from pathlib import Path",
        "from huggingface_hub import CommitOperationAdd, HfApi",
    ]
    lines += ["api = HfApi()", *(line.strip() for line in script.splitlines())]
    home = hub.store.root.parent / f"home-{os.urandom(4).hex()}"
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        env={**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_xet", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_uploads_went_by_xet_and_not_by_lfs(xet_hub: LocalHub, pushed: str) -> None:
    asked = [(request.method, request.path.partition("?")[0]) for request in xet_hub.requests]
    assert len([path for _, path in asked if "/xet-write-token/" in path]) >= 2
    assert any("/xet-read-token/" in path for _, path in asked)
    assert not [path for _, path in asked if path.startswith("/lfs/") or path.endswith("/batch")]
    assert not [path for method, path in asked if method == "GET" and path.endswith(".safetensors")]


def test_another_process_reads_by_xet(xet_hub: LocalHub, pushed: str, tmp_path: Path) -> None:
    xet_hub.requests.clear()
    run_client(
        xet_hub,
        f"api.snapshot_download({pushed!r}, local_dir=sys.argv[1])",
        str(tmp_path),
    )
    assert (tmp_path / "a.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "b.safetensors").read_bytes() == WEIGHTS[::-1]
    assert any("/xet-read-token/" in request.path for request in xet_hub.requests)


def test_plain_http_reads_the_same_bytes(xet_hub: LocalHub, pushed: str) -> None:
    url = f"{xet_hub.url}/{pushed}/resolve/main/a.safetensors"
    answer = httpx2.get(url, headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[1000:2000])
    assert answer.headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert len(answer.headers["X-Xet-Hash"]) == 64


def test_the_hash_is_in_every_listing(xet_hub: LocalHub, pushed: str) -> None:
    api = HfApi(endpoint=xet_hub.url, token="hf_xet")
    url = f"{xet_hub.url}/{pushed}/resolve/main/a.safetensors"
    listed = {item.path: item.xet_hash for item in api.list_repo_tree(pushed) if isinstance(item, RepoFile)}
    assert listed["a.safetensors"] == httpx2.head(url).headers["X-Xet-Hash"]
    assert listed["a.safetensors"] != listed["b.safetensors"]
    assert listed["config.json"] is None
    (found,) = api.get_paths_info(pushed, ["a.safetensors"])
    assert isinstance(found, RepoFile)
    assert found.xet_hash == listed["a.safetensors"]


def test_what_came_without_xet_is_read_by_xet_too(xet_hub: LocalHub, tmp_path: Path) -> None:
    xet_hub.create_repo("me/plain")
    xet_hub.commit("me/plain", {"model.safetensors": WEIGHTS})
    api = HfApi(endpoint=xet_hub.url, token="hf_xet")
    api.upload_file(repo_id="me/plain", path_or_fileobj=WEIGHTS[::-1], path_in_repo="by-lfs.bin")
    xet_hub.requests.clear()
    run_client(xet_hub, "api.snapshot_download('me/plain', local_dir=sys.argv[1])", str(tmp_path))
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "by-lfs.bin").read_bytes() == WEIGHTS[::-1]
    asked = [(request.method, request.path) for request in xet_hub.requests]
    assert any("/xet-read-token/" in path for _, path in asked)
    assert not [path for method, path in asked if method == "GET" and path.endswith((".bin", ".safetensors"))]


def test_large_files_are_copied_between_repos(xet_hub: LocalHub, pushed: str, tmp_path: Path) -> None:
    xet_hub.create_repo("me/copy")
    api = HfApi(endpoint=xet_hub.url, token="hf_xet")
    xet_hub.requests.clear()
    api.copy_files(f"hf://{pushed}/", "hf://me/copy/copied/")
    assert not [request.path for request in xet_hub.requests if "a.safetensors" in request.path]
    url = f"{xet_hub.url}/me/copy/resolve/main/copied/a.safetensors"
    assert httpx2.get(url).content == WEIGHTS
    run_client(xet_hub, "api.snapshot_download('me/copy', local_dir=sys.argv[1])", str(tmp_path))
    assert (tmp_path / "copied" / "b.safetensors").read_bytes() == WEIGHTS[::-1]


def test_nothing_is_copied_out_of_a_repo_that_is_closed(xet_hub: LocalHub) -> None:
    xet_hub.create_repo("me/closed", gated=True)
    xet_hub.commit("me/closed", {"w.bin": WEIGHTS})
    xet_hub.create_repo("me/hidden", private=True)
    xet_hub.commit("me/hidden", {"w.bin": WEIGHTS})
    xet_hub.create_repo("stranger/mine")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    body = {"target": {"type": "model", "name": "stranger/mine"}, "files": [{"sha256": sha256}]}
    headers = {"Authorization": f"Bearer {xet_hub.add_token('stranger')}"}
    for source, status in (("me/closed", 403), ("me/hidden", 404), ("stranger/mine", 200)):
        url = f"{xet_hub.url}/api/models/{source}/lfs-files/duplicate"
        answer = httpx2.post(url, json=body, headers=headers)
        assert answer.status_code == status
    assert [failure["sha256"] for failure in answer.json()["failed"]] == [sha256]
    assert not xet_hub.store.get("model", "stranger/mine").objects.path(sha256).exists()
    hidden = {**body, "target": {"type": "model", "name": "me/hidden"}}
    assert httpx2.post(url, json=hidden, headers=headers).status_code == 404


def test_a_store_that_lacks_the_object_is_refused(xet_hub: LocalHub, pushed: str) -> None:
    absent = {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 5}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": absent}]
    answer = httpx2.post(
        f"{xet_hub.url}/api/models/{pushed}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": "Bearer hf_xet"},
    )
    assert (answer.status_code, "never uploaded" in answer.json()["error"]) == (400, True)


def test_stores_open_only_to_those_who_may_read(xet_hub: LocalHub, pushed: str) -> None:
    xet_hub.create_repo("me/gated", gated=True)
    api = f"{xet_hub.url}/api/models"
    assert httpx2.get(f"{api}/me/gated/xet-read-token/main").headers["X-Error-Code"] == "GatedRepo"
    assert httpx2.get(f"{api}/{pushed}/xet-write-token/main").status_code == 401
    assert httpx2.get(f"{api}/{pushed}/xet-read-token/nowhere").status_code == 404
    xet_hub.create_repo("me/small")
    assert httpx2.get(f"{api}/me/small/xet-read-token/main").status_code == 404


def test_a_hub_without_xet_says_so(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    answer = httpx2.get(f"{hub.url}/api/models/{repo_id}/xet-write-token/main")
    assert answer.status_code == 404
    assert "HF_HUB_DISABLE_XET=1" in answer.headers["X-Error-Message"]


def test_a_push_by_xet_to_a_hub_without_it_says_what_to_set(
    hub: LocalHub, token: str, repo_id: str, tmp_path: Path
) -> None:
    shutil.copytree(DEMO / "step_0", tmp_path / "model")
    ran = subprocess.run(
        [sys.executable, "-m", "hubextrap", "push", str(tmp_path / "model"), repo_id, "-q"],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "set HF_HUB_DISABLE_XET=1, then push again" in ran.stderr
