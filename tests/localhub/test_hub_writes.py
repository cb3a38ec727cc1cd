"""The unmodified huggingface_hub client writes to the hub."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RevisionNotFoundError

from hubextrap.localhub import LocalHub

WEIGHTS = bytes(range(256)) * 1000


def commit_lines(
    hub: LocalHub, repo_id: str, token: str, *operations: dict[str, Any], revision: str = "main"
) -> httpx2.Response:
    """A commit as raw lines, to send what the client would not."""
    lines = [{"key": "header", "value": {"summary": "raw"}}, *operations]
    return httpx2.post(
        f"{hub.url}/api/models/{repo_id}/commit/{revision}",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {token}"},
    )


def uploads_left(hub: LocalHub, repo_id: str) -> list[Path]:
    objects = hub.store.get("model", repo_id).folder / "lfs"
    return [path for path in objects.rglob("*") if path.is_file()]


def test_a_commit_can_be_read_back(api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    operations = [
        CommitOperationAdd("model.safetensors", WEIGHTS),
        CommitOperationAdd("config.json", b"{}"),
        CommitOperationAdd("empty.safetensors", b""),
        CommitOperationAdd("README.md", b"---\nlibrary_name: transformers\ntags: [a]\n---\nhello"),
    ]
    parent = api.model_info(repo_id).sha
    commit = api.create_commit(repo_id, operations, commit_message="first\n\nwhy", parent_commit=parent)
    path = api.hf_hub_download(repo_id, "model.safetensors", revision=commit.oid)
    assert Path(path).read_bytes() == WEIGHTS
    info = api.model_info(repo_id, files_metadata=True)
    assert (info.sha, info.library_name, info.tags) == (commit.oid, "transformers", ["a"])
    files = {file.rfilename: file for file in info.siblings or []}
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "empty.safetensors",
        "model.safetensors",
    }
    lfs = files["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert files["config.json"].lfs is None
    assert files["empty.safetensors"].size == 0
    newest = api.list_repo_commits(repo_id)[0]
    assert (newest.title, newest.message, newest.authors) == ("first", "why", ["me"])


def test_upload_folder_skips_what_is_there(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    api.create_repo(repo_id)
    first = api.upload_folder(repo_id=repo_id, folder_path=tmp_path)
    again = api.upload_folder(repo_id=repo_id, folder_path=tmp_path)
    assert again.oid == first.oid
    assert api.list_repo_files(repo_id) == [".gitattributes", "config.json", "sub/model.safetensors"]


def test_delete_and_copy(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a/x.bin": WEIGHTS, "a/y.txt": b"y", "b.txt": b"b", "c.txt": b"c"})
    api.create_commit(
        repo_id,
        [
            CommitOperationCopy("a/x.bin", "d/x.bin"),
            CommitOperationDelete("a/", is_folder=True),
            CommitOperationDelete("b.txt"),
        ],
        commit_message="tidy",
    )
    assert api.list_repo_files(repo_id) == [".gitattributes", "c.txt", "d/x.bin"]
    assert Path(api.hf_hub_download(repo_id, "d/x.bin")).read_bytes() == WEIGHTS


def test_a_commit_on_a_head_that_moved_is_refused(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    parent = api.model_info(repo_id).sha
    hub.commit(repo_id, {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError, match="a commit has happened since") as refused:
        api.create_commit(
            repo_id, [CommitOperationAdd("b.txt", b"b")], commit_message="b", parent_commit=parent
        )
    assert refused.value.response.status_code == 412


def test_of_many_commits_on_one_head_one_wins(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    parent = api.model_info(repo_id).sha

    def push(number: int) -> int:
        operation = CommitOperationAdd(f"{number}.txt", b"x")
        try:
            api.create_commit(repo_id, [operation], commit_message="race", parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(push, range(6))) == [200, 412, 412, 412, 412, 412]
    assert len(api.list_repo_commits(repo_id)) == 2


def test_branches_and_tags(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    first = hub.commit(repo_id, {"a.txt": b"1"})
    second = hub.commit(repo_id, {"a.txt": b"2"})
    api.create_branch(repo_id, branch="feat/x", revision=first)
    api.create_tag(repo_id, tag="v1", revision="feat/x")
    refs = api.list_repo_refs(repo_id)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"feat/x": first, "main": second}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert Path(api.hf_hub_download(repo_id, "a.txt", revision="feat/x")).read_bytes() == b"1"
    commit = api.upload_file(repo_id=repo_id, path_or_fileobj=b"3", path_in_repo="a.txt", revision="feat/x")
    assert api.model_info(repo_id, revision="feat/x").sha == commit.oid
    for name in ("feat/x", "feat"):
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_branch(repo_id, branch=name)
        assert refused.value.response.status_code == 409
    api.create_branch(repo_id, branch="feat/x", exist_ok=True)
    api.create_tag(repo_id, tag="v1", exist_ok=True)
    api.delete_branch(repo_id, branch="feat/x")
    api.delete_tag(repo_id, tag="v1")
    refs = api.list_repo_refs(repo_id)
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError):
        api.delete_branch(repo_id, branch="feat/x")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id=repo_id, path_or_fileobj=b"3", path_in_repo="a.txt", revision="nowhere")
    with pytest.raises(HfHubHTTPError, match="not a valid ref name"):
        api.create_branch(repo_id, branch="a..b")


def test_repos_come_and_go(api: HfApi, repo_id: str) -> None:
    url = api.create_repo(repo_id, private=True)
    assert url.repo_id == repo_id
    assert api.create_repo(repo_id, exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(repo_id)
    assert api.repo_info(repo_id).private
    api.update_repo_settings(repo_id, private=False, gated="manual")
    info = api.model_info(repo_id)
    assert (info.private, info.gated) == (False, "manual")
    api.delete_repo(repo_id)
    assert not api.repo_exists(repo_id)
    api.create_repo(repo_id, repo_type="dataset")
    api.upload_file(repo_id=repo_id, path_or_fileobj=WEIGHTS, path_in_repo="a.parquet", repo_type="dataset")
    path = api.hf_hub_download(repo_id, "a.parquet", repo_type="dataset")
    assert Path(path).read_bytes() == WEIGHTS
    assert not api.repo_exists(repo_id)


@pytest.mark.parametrize(
    "path", ["../up", "/abs", "a/../b", "a//b", ".git/config", "a/.GIT/x", "a\\b", "a\nb"]
)
def test_bad_paths_are_refused(hub: LocalHub, token: str, repo_id: str, path: str) -> None:
    hub.create_repo(repo_id)
    file = {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}}
    answer = commit_lines(hub, repo_id, token, file)
    assert answer.status_code == 400
    assert "not a valid path" in answer.json()["error"]


def test_a_file_never_replaces_a_folder_or_the_other_way_round(
    hub: LocalHub, api: HfApi, repo_id: str
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"file": b"1", "folder/inner": b"1"})
    for path, why in (("file/inner", "file is a file"), ("folder", "it is a folder")):
        with pytest.raises(BadRequestError, match=why):
            api.upload_file(repo_id=repo_id, path_or_fileobj=b"2", path_in_repo=path)
    with pytest.raises(BadRequestError, match="cannot delete nothing: it is not there"):
        api.delete_file("nothing", repo_id=repo_id)
    assert api.list_repo_files(repo_id) == [".gitattributes", "file", "folder/inner"]


def test_a_commit_that_names_an_absent_object_is_refused(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo(repo_id)
    sha256 = hashlib.sha256(b"never uploaded").hexdigest()
    lfs = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": sha256, "size": 14}}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 14\n"
    regular = {"key": "file", "value": {"path": "a.txt", "content": pointer, "encoding": "utf-8"}}
    for operation in (lfs, regular):
        answer = commit_lines(hub, repo_id, token, operation)
        assert (answer.status_code, "never uploaded" in answer.json()["error"]) == (400, True)
    for broken in ({"key": "lfsFile", "value": {"path": "x", "oid": "../../x", "size": 1}}, {"key": "boom"}):
        assert commit_lines(hub, repo_id, token, broken).status_code == 400


def test_an_object_of_another_repo_cannot_be_claimed(hub: LocalHub, token: str, repo_id: str) -> None:
    hub.create_repo("other/gated-weights", gated=True)
    hub.commit("other/gated-weights", {"w.bin": WEIGHTS})
    hub.create_repo(repo_id)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    claim = {"path": "w.bin", "algo": "sha256", "oid": sha256, "size": len(WEIGHTS)}
    assert commit_lines(hub, repo_id, token, {"key": "lfsFile", "value": claim}).status_code == 400


def upload_link(hub: LocalHub, repo_id: str, token: str, content: bytes) -> str:
    wanted = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    answer = httpx2.post(
        f"{hub.url}/{repo_id}.git/info/lfs/objects/batch",
        json={"operation": "upload", "transfers": ["basic"], "objects": [wanted]},
        headers={"Authorization": f"Bearer {token}"},
    )
    link: str = answer.json()["objects"][0]["actions"]["upload"]["href"]
    return link


@pytest.mark.parametrize("sent", [b"x" * 1000, b"x" * 999, b"x" * 1001, b""])
def test_an_upload_that_is_not_what_was_announced_leaves_nothing(
    hub: LocalHub, token: str, repo_id: str, sent: bytes
) -> None:
    hub.create_repo(repo_id)
    link = upload_link(hub, repo_id, token, b"y" * 1000)
    answer = httpx2.put(link, content=sent)
    assert answer.status_code == 400
    assert uploads_left(hub, repo_id) == []
    assert httpx2.put(link + "0", content=b"y" * 1000).status_code == 403
    assert httpx2.put(link, content=b"y" * 1000).status_code == 200
    assert len(uploads_left(hub, repo_id)) == 1


def test_an_upload_in_parts(hub: LocalHub, api: HfApi, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "part_size", 100_000)
    api.create_repo(repo_id)
    api.upload_file(repo_id=repo_id, path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors")
    assert Path(api.hf_hub_download(repo_id, "model.safetensors")).read_bytes() == WEIGHTS
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert len(puts) == 3
    assert all("authorization" not in request.headers for request in puts)
    assert len(uploads_left(hub, repo_id)) == 1


def test_pull_requests(hub: LocalHub, api: HfApi, stranger: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a.txt": b"a\n"})
    commit = stranger.create_commit(
        repo_id, [CommitOperationAdd("w.safetensors", WEIGHTS)], commit_message="weights", create_pr=True
    )
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    path = api.hf_hub_download(repo_id, "w.safetensors", revision="refs/pr/1")
    assert Path(path).read_bytes() == WEIGHTS
    stranger.upload_file(repo_id=repo_id, path_or_fileobj=b"b\n", path_in_repo="b.txt", revision="refs/pr/1")
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
    details = api.get_discussion_details(repo_id, 1)
    assert (details.title, details.author, details.status) == ("weights", "stranger", "open")
    assert details.target_branch == "refs/heads/main"
    assert "+b" in (details.diff or "")
    assert [event.type for event in details.events] == ["comment", "commit", "commit"]
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        stranger.merge_pull_request(repo_id, 1)
    api.merge_pull_request(repo_id, 1)
    assert api.get_discussion_details(repo_id, 1).status == "merged"
    assert api.list_repo_files(repo_id) == [".gitattributes", "a.txt", "b.txt", "w.safetensors"]
    assert api.list_repo_commits(repo_id)[0].title == "weights (#1)"


def test_discussions_and_drafts(hub: LocalHub, api: HfApi, stranger: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    assert stranger.create_discussion(repo_id, "a question").status == "open"
    draft = api.create_pull_request(repo_id, "a draft")
    assert (draft.num, draft.status) == (2, "draft")
    api.upload_file(repo_id=repo_id, path_or_fileobj=b"b", path_in_repo="b.txt", revision=draft.git_reference)
    with pytest.raises(BadRequestError, match="not an open pull request"):
        api.merge_pull_request(repo_id, 2)
    api.change_discussion_status(repo_id, 2, "open")
    stranger.comment_discussion(repo_id, 2, "looks good")
    hub.commit(repo_id, {"b.txt": b"something else"})
    with pytest.raises(HfHubHTTPError, match="conflicts with refs/heads/main"):
        api.merge_pull_request(repo_id, 2)
    listed = api.get_repo_discussions(repo_id, discussion_type="pull_request", author="me")
    assert [(discussion.num, discussion.title) for discussion in listed] == [(2, "a draft")]
    with pytest.raises(HfHubHTTPError, match="no discussion 3"):
        api.get_discussion_details(repo_id, 3)


def test_bad_card_metadata_is_refused(api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(repo_id=repo_id, path_or_fileobj=b"---\ntags: [a\n---\n", path_in_repo="README.md")
