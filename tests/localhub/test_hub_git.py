"""git clone and fetch over HTTP, and the LFS objects that git-lfs asks for."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from pathlib import Path

import httpx2
import pytest

from hubextrap.localhub import LocalHub

WEIGHTS = bytes(range(256)) * 1000


def git(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run git without the configuration of whoever runs the tests, and without asking for a password."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    environment |= {"GIT_LFS_SKIP_SMUDGE": "1"}
    ran = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return ran.stdout


@pytest.fixture
def model(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    hub.branch(repo_id, "step_1")
    return repo_id


@pytest.mark.parametrize("suffix", ["", ".git"])
def test_clone_and_fetch(hub: LocalHub, model: str, tmp_path: Path, suffix: str) -> None:
    git("clone", f"{hub.url}/{model}{suffix}", tmp_path / "clone")
    assert (tmp_path / "clone" / "config.json").read_text() == "{}"
    pointer = (tmp_path / "clone" / "model.safetensors").read_text()
    assert hashlib.sha256(WEIGHTS).hexdigest() in pointer
    sha = hub.commit(model, {"config.json": b"{...}"}, revision="step_1")
    git("fetch", "origin", "step_1", folder=tmp_path / "clone")
    assert git("rev-parse", "FETCH_HEAD", folder=tmp_path / "clone").strip() == sha
    git("clone", "--depth=1", f"{hub.url}/{model}", tmp_path / "shallow")
    assert len(git("log", "--oneline", folder=tmp_path / "shallow").splitlines()) == 1


def test_a_renamed_repo_is_cloned(hub: LocalHub, model: str, tmp_path: Path) -> None:
    hub.move_repo(model, f"{model}-new")
    git("clone", f"{hub.url}/{model}", tmp_path / "clone")
    assert (tmp_path / "clone" / "config.json").exists()


def test_who_may_clone(hub: LocalHub, token: str, repo_id: str, tmp_path: Path) -> None:
    for number, closed in enumerate(({"private": True}, {"gated": True})):
        name = f"{repo_id}-{number}"
        hub.create_repo(name, **closed)  # type: ignore[arg-type]
        hub.commit(name, {"a.txt": b"a"})
        host = hub.url.removeprefix("http://")
        for login in ("", "x:hf_wrong@", f"stranger:{hub.add_token('stranger')}@"):
            with pytest.raises(RuntimeError):
                git("clone", f"http://{login}{host}/{name}", tmp_path / "no")
        refused = httpx2.get(f"{hub.url}/{name}/info/refs?service=git-upload-pack")
        assert (refused.status_code, refused.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        assert httpx2.post(f"{hub.url}/{name}/git-upload-pack", content=b"0000").status_code == 401
        git("clone", f"http://me:{token}@{host}/{name}", tmp_path / str(number))
        assert (tmp_path / str(number) / "a.txt").exists()


def test_nothing_is_pushed_with_git(hub: LocalHub, token: str, model: str, tmp_path: Path) -> None:
    url = f"http://me:{token}@{hub.url.removeprefix('http://')}/{model}"
    git("clone", url, tmp_path / "clone")
    with pytest.raises(RuntimeError, match="403"):
        git("push", "origin", "main:other", folder=tmp_path / "clone")
    assert httpx2.post(f"{hub.url}/{model}/git-receive-pack", content=b"0000").status_code == 404


def test_broken_requests_are_refused(hub: LocalHub, model: str) -> None:
    url = f"{hub.url}/{model}/git-upload-pack"
    assert httpx2.post(url, content=b"nonsense").status_code == 400
    compressed = {"Content-Encoding": "gzip"}
    assert httpx2.post(url, content=b"nonsense", headers=compressed).status_code == 400
    assert httpx2.post(url, content=gzip.compress(b"0000"), headers=compressed).status_code == 200
    bomb = gzip.compress(bytes((1 << 26) + 1), compresslevel=1)
    assert httpx2.post(url, content=bomb, headers=compressed).status_code == 413


def lfs(
    hub: LocalHub, repo: str, operation: str, content: bytes, token: str | None = None
) -> httpx2.Response:
    wanted = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return httpx2.post(
        f"{hub.url}/{repo}.git/info/lfs/objects/batch",
        json={"operation": operation, "transfers": ["basic"], "objects": [wanted]},
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def test_lfs_objects_are_downloaded(hub: LocalHub, model: str) -> None:
    (found,) = lfs(hub, model, "download", WEIGHTS).json()["objects"]
    link = found["actions"]["download"]["href"]
    assert httpx2.get(link).content == WEIGHTS
    assert httpx2.get(link.replace("download=1", "download=0")).status_code == 403
    assert httpx2.put(link, content=WEIGHTS).status_code == 403
    (missing,) = lfs(hub, model, "download", b"never there").json()["objects"]
    assert missing["error"]["code"] == 404
    assert lfs(hub, model, "destroy", WEIGHTS).status_code == 422


def test_a_link_to_upload_opens_nothing(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id, gated=True)
    stranger = hub.add_token("stranger")
    (found,) = lfs(hub, repo_id, "upload", WEIGHTS, stranger).json()["objects"]
    link = found["actions"]["upload"]["href"]
    hub.commit(repo_id, {"w.bin": WEIGHTS})
    assert httpx2.get(link).status_code == 403
    assert lfs(hub, repo_id, "download", WEIGHTS).status_code == 401
    assert lfs(hub, repo_id, "download", WEIGHTS, stranger).status_code == 403
    assert lfs(hub, repo_id, "download", WEIGHTS, token).status_code == 200
