"""The unmodified huggingface_hub client reads from the hub."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, HfFileSystem, RepoFile
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hubextrap.localhub import LocalHub
from hubextrap.localhub.wire import parse_range

WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def model(hub: LocalHub, repo_id: str) -> str:
    """A repo with weights on main and on two step branches."""
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/deep/x.txt": b"x"})
    hub.commit(repo_id, {"model.safetensors": WEIGHTS * 2}, revision="step_100")
    hub.branch(repo_id, "step/200")
    hub.tag(repo_id, "v1", from_="step_100")
    hub.requests.clear()
    return repo_id


def test_snapshots_of_branches_tags_and_commits(
    anonymous: HfApi, hub: LocalHub, model: str, tmp_path: Path
) -> None:
    sha = anonymous.model_info(model, revision="step_100").sha
    assert sha is not None
    for number, revision in enumerate(("step_100", "v1", sha, sha[:10])):
        folder = Path(anonymous.snapshot_download(model, revision=revision, local_dir=tmp_path / str(number)))
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS * 2
        assert not (folder / "config.json").exists()
    folder = Path(anonymous.snapshot_download(model, revision="step/200"))
    assert (folder / "sub" / "deep" / "x.txt").read_bytes() == b"x"
    assert any("step%2F200" in request.path for request in hub.requests)


def test_trees_come_in_pages(
    anonymous: HfApi, hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    names = [f"folder/{number:03d}.txt" for number in range(25)]
    hub.commit(repo_id, dict.fromkeys(names, b"x"))
    monkeypatch.setattr(hub, "page_size", 10)
    items = list(anonymous.list_repo_tree(repo_id, recursive=True, expand=True))
    assert [item.path for item in items if isinstance(item, RepoFile)] == [".gitattributes", *names]
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 3
    assert {item.last_commit.title for item in items if item.last_commit} == {
        "initial commit",
        "Upload files",
    }
    assert [item.path for item in anonymous.list_repo_tree(repo_id)] == [".gitattributes", "folder"]
    assert len(list(anonymous.list_repo_tree(repo_id, "folder"))) == 25


def test_paths_info_leaves_out_what_is_missing(anonymous: HfApi, model: str) -> None:
    found = anonymous.get_paths_info(model, ["model.safetensors", "nowhere", "sub"], expand=True)
    assert [item.path for item in found] == ["model.safetensors", "sub"]
    assert isinstance(found[0], RepoFile)
    assert found[0].lfs is not None
    assert found[0].size == found[0].lfs.size == len(WEIGHTS)


def test_dates_of_commits(anonymous: HfApi, hub: LocalHub, repo_id: str) -> None:
    dates = [datetime(2025, 1, day, 12, tzinfo=timezone.utc) for day in (1, 2, 3)]
    hub.create_repo(repo_id, date=dates[0])
    for step, date in enumerate(dates[1:]):
        hub.commit(repo_id, {"a.txt": str(step).encode()}, message=f"step {step}", date=date)
    listed = anonymous.list_repo_commits(repo_id)
    assert [commit.created_at for commit in listed] == dates[::-1]
    assert [commit.title for commit in listed] == ["step 1", "step 0", "initial commit"]
    assert anonymous.model_info(repo_id).last_modified == dates[-1]


def test_the_same_set_up_gives_the_same_commit(hub: LocalHub, repo_id: str) -> None:
    date = datetime(2025, 1, 1, tzinfo=timezone.utc)
    shas = []
    for name in (repo_id, f"{repo_id}-twin"):
        hub.create_repo(name, date=date)
        shas.append(hub.commit(name, {"model.safetensors": WEIGHTS}, date=date))
    assert shas[0] == shas[1]


def test_the_file_system_reads_ranges(anonymous: HfApi, model: str) -> None:
    files = HfFileSystem(token=False)
    assert files.ls(model, detail=False) == [
        f"{model}/{name}" for name in (".gitattributes", "config.json", "model.safetensors", "sub")
    ]
    with files.open(f"{model}@step_100/model.safetensors", cache_type="none") as file:
        file.seek(300)
        assert file.read(10) == WEIGHTS[300:310]
    assert files.glob(f"{model}@step%2F200/**/*.txt") == [f"{model}@step%2F200/sub/deep/x.txt"]


@pytest.mark.parametrize(
    ("wanted", "served"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=100-199", (100, 200)),
        ("bytes=255990-", (255990, 256000)),
        ("bytes=-10", (255990, 256000)),
        ("bytes=255990-999999", (255990, 256000)),
    ],
)
def test_ranges(hub: LocalHub, model: str, wanted: str, served: tuple[int, int]) -> None:
    answer = httpx2.get(f"{hub.url}/{model}/resolve/main/model.safetensors", headers={"Range": wanted})
    start, end = served
    assert (answer.status_code, answer.content) == (206, WEIGHTS[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/256000"


@pytest.mark.parametrize("wanted", ["bytes=256000-", "bytes=256000-256001", "bytes=-0"])
def test_ranges_beyond_the_end(hub: LocalHub, model: str, wanted: str) -> None:
    answer = httpx2.get(f"{hub.url}/{model}/resolve/main/model.safetensors", headers={"Range": wanted})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */256000")


@pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=-"])
def test_ranges_that_are_none(hub: LocalHub, model: str, wanted: str) -> None:
    answer = httpx2.get(f"{hub.url}/{model}/resolve/main/model.safetensors", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


def test_ranges_of_small_and_empty_files() -> None:
    assert parse_range("bytes=0-100000", 10) == (0, 10)
    assert parse_range("bytes=-100", 10) == (0, 10)
    assert parse_range(None, 10) is None
    start, end = parse_range("bytes=0-", 0) or (0, 1)
    assert start >= end


def test_headers_of_a_file(hub: LocalHub, model: str) -> None:
    url = f"{hub.url}/{model}/resolve/main"
    lfs = httpx2.head(f"{url}/model.safetensors")
    assert (lfs.status_code, lfs.content) == (200, b"")
    assert lfs.headers["X-Linked-Size"] == lfs.headers["Content-Length"] == "256000"
    assert lfs.headers["X-Linked-Etag"] == lfs.headers["ETag"]
    assert len(lfs.headers["X-Repo-Commit"]) == 40
    assert lfs.headers["Accept-Ranges"] == "bytes"
    regular = httpx2.get(f"{url}/config.json")
    assert (regular.content, "X-Linked-Etag" in regular.headers) == (b"{}", False)


def test_one_connection_carries_many_requests(hub: LocalHub, model: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=hub.url) as client:
        for _ in range(3):
            assert client.get(f"/{model}/resolve/main/config.json").content == b"{}"
            assert client.get(f"/{model}/resolve/main/nowhere").status_code == 404
            refused = client.post(f"/api/models/{model}/commit/main", content=b"x" * 100_000)
            assert refused.status_code == 401
            spaces = client.post(
                f"/api/models/{model}/commit/nowhere", content=iter([b"a", b"b"]), headers=headers
            )
            assert spaces.status_code == 404
        connection = client.get(f"/{model}/resolve/main/config.json").extensions["network_stream"]
        assert connection.get_extra_info("client_addr")


def test_what_is_missing_is_named(anonymous: HfApi, model: str) -> None:
    with pytest.raises(EntryNotFoundError):
        anonymous.hf_hub_download(model, "nowhere")
    with pytest.raises(EntryNotFoundError):
        list(anonymous.list_repo_tree(model, "additional_chat_templates"))
    for revision in ("nowhere", "0" * 40, "refs/pr/9", "refs/heads/../x"):
        with pytest.raises(RevisionNotFoundError):
            anonymous.model_info(model, revision=revision)
        with pytest.raises(RevisionNotFoundError):
            anonymous.hf_hub_download(model, "config.json", revision=revision)
    for name in ("me/nowhere", "nowhere"):
        with pytest.raises(RepositoryNotFoundError):
            anonymous.model_info(name)
        with pytest.raises(RepositoryNotFoundError):
            anonymous.hf_hub_download(name, "config.json")
        with pytest.raises(RepositoryNotFoundError):
            anonymous.list_repo_refs(name)


def test_listing_by_author_search_and_tag(api: HfApi, anonymous: HfApi, hub: LocalHub) -> None:
    for step in (100, 600):
        hub.create_repo(f"lister/Run-step-{step}")
    hub.commit("lister/Run-step-600", {"README.md": b"---\ntags: [merge]\n---\n"})
    hub.create_repo("lister/run-hidden", private=True)
    hub.create_repo("lister/other")
    found = [model.id for model in anonymous.list_models(author="lister", search="run-")]
    assert found == ["lister/Run-step-100", "lister/Run-step-600"]
    assert [model.id for model in anonymous.list_models(author="lister", filter="merge")] == found[1:]
    assert len(list(anonymous.list_models(author="lister", limit=2))) == 2
    assert list(anonymous.list_datasets(author="lister")) == []
    owner = HfApi(token=hub.add_token("lister"))
    assert len(list(owner.list_models(author="lister"))) == 4


def test_git_finds_nothing_wrong(hub: LocalHub, api: HfApi, model: str) -> None:
    api.upload_file(repo_id=model, path_or_fileobj=b"x", path_in_repo="x.txt", create_pr=True)
    api.merge_pull_request(model, 1)
    folder = hub.store.get("model", model).folder
    checked = subprocess.run(
        ["git", "-C", folder, "fsck", "--full", "--strict", "--no-dangling"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr
