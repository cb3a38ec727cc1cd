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


def test_a_folder_is_deleted_like_a_file_too(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a/x.txt": b"x", "a/b/y.txt": b"y", "ab.txt": b"kept"})
    api.create_commit(repo_id, [CommitOperationDelete("a", is_folder=False)], commit_message="tidy")
    assert api.list_repo_files(repo_id) == [".gitattributes", "ab.txt"]


def test_a_repos_own_gitattributes_decide_what_is_lfs(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    rules = b"*.png filter=lfs diff=lfs merge=lfs -text\n*.bin -filter\nlogs/** filter=lfs\n"
    api.upload_file(repo_id=repo_id, path_or_fileobj=rules, path_in_repo=".gitattributes")
    plain = ("a.bin", "a.txt", "empty.png")
    tracked = ("a.png", "logs/a.txt", "sub/b.png", "binary.data", "huge.bin")
    contents = {"empty.png": b"", "binary.data": b"a\0b", "huge.bin": b"x" * 10_000_001}
    operations = [CommitOperationAdd(path, contents.get(path, b"text")) for path in (*plain, *tracked)]
    api.create_commit(repo_id, operations, commit_message="by rule")
    hub.commit(repo_id, {"set-up.png": b"text", "set-up.bin": b"text"})
    files = api.model_info(repo_id, files_metadata=True).siblings or []
    lfs = {file.rfilename for file in files if file.lfs}
    assert lfs == {*tracked, "set-up.png"}


def test_what_gitignore_rules_out_is_not_uploaded(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    api.create_repo(repo_id)
    (tmp_path / "cache").mkdir()
    for path in ("a.txt", "a.log", "kept.log", "cache/b.txt"):
        (tmp_path / path).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n!kept.log\ncache/\n")
    api.upload_folder(repo_id=repo_id, folder_path=tmp_path)
    there = [".gitattributes", ".gitignore", "a.txt", "kept.log"]
    assert api.list_repo_files(repo_id) == there
    api.upload_file(repo_id=repo_id, path_or_fileobj=b"x", path_in_repo="later.log")  # by the repo's own
    assert api.list_repo_files(repo_id) == there


def test_one_commit_in_place_of_many(hub: LocalHub, api: HfApi, stranger: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a.bin": WEIGHTS})
    hub.branch(repo_id, "kept")
    hub.commit(repo_id, {"b.txt": b"b"})
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        stranger.super_squash_history(repo_id)
    api.super_squash_history(repo_id, commit_message="all in one")
    assert [commit.title for commit in api.list_repo_commits(repo_id)] == ["all in one"]
    assert api.list_repo_files(repo_id) == [".gitattributes", "a.bin", "b.txt"]
    assert len(api.list_repo_commits(repo_id, revision="kept")) == 2


def test_a_commit_on_a_head_that_moved_is_refused(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    parent = api.model_info(repo_id).sha
    hub.commit(repo_id, {"a.txt": b"a"})
    with pytest.raises(HfHubHTTPError, match="branch was updated") as refused:
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
    for name, why in (("feat/x", "Reference refs/heads/feat/x already exists"), ("feat", "refs/heads/feat")):
        with pytest.raises(HfHubHTTPError, match=why) as refused:
            api.create_branch(repo_id, branch=name)
        assert refused.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError, match="Reference refs/tags/v1 already exists"):
        api.create_tag(repo_id, tag="v1")
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(repo_id, branch="main")
    api.create_branch(repo_id, branch="feat/x", exist_ok=True)
    api.create_tag(repo_id, tag="v1", exist_ok=True)
    api.delete_branch(repo_id, branch="feat/x")
    api.delete_tag(repo_id, tag="v1")
    refs = api.list_repo_refs(repo_id)
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id: feat/x"):
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
    "path",
    [
        "../up",
        "/abs",
        "a/../b",
        "./a",
        "a//b",
        ".git/config",
        "a/.GIT/x",
        "a\nb",
        "..\\up",
        "\\abs",
        "C:\\abs",
    ],
)
def test_bad_paths_are_refused(hub: LocalHub, token: str, repo_id: str, path: str) -> None:
    hub.create_repo(repo_id)
    file = {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}}
    answer = commit_lines(hub, repo_id, token, file)
    assert answer.status_code == 422
    assert "not a valid path" in answer.json()["error"]
    with pytest.raises(HfHubHTTPError, match="not a valid path") as refused:
        HfApi(token=token).preupload_lfs_files(repo_id, [CommitOperationAdd("ok.txt", b"x"), _named(path)])
    assert refused.value.response.status_code == 422


@pytest.mark.parametrize(
    "value",
    [
        *(
            {"path": name, "content": ""}
            for name in ("git~1/x", "a/GIT~1/x", ".g\u200cit/x", ".git /x", ".git./x")
        ),
        *({"path": "x", "content": content} for content in (5, None, [], {})),
        *({"path": "x", "encoding": "base64", "content": content} for content in ("!!", "YQ", 5, "\u00e9")),
        {"path": "x"},
        {"path": "x/" * 2_000 + "x", "content": ""},
        {"path": "x" * 5_000, "content": ""},
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_files_of_a_commit_are_no_fault_of_the_hub(
    hub: LocalHub, token: str, repo_id: str, value: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    """git refuses more names than we do."""
    hub.create_repo(repo_id)
    answer = commit_lines(hub, repo_id, token, {"key": "file", "value": value})
    assert answer.status_code in (200, 400, 422), answer.text
    assert answer.status_code != 200 or isinstance(value.get("content"), str)
    assert "Traceback" not in capfd.readouterr().err


def _named(path: str) -> CommitOperationAdd:
    """An operation with a path that the client itself might refuse."""
    operation = CommitOperationAdd("ok.bin", b"x")
    operation.path_in_repo = path
    return operation


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
    assert answer.status_code == (413 if len(sent) > 1000 else 400)
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


def test_pull_requests_start_from_branches_only(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.tag(repo_id, "v1")
    sha = api.model_info(repo_id).sha
    for revision in (sha, "v1", "refs/pr/1", "nowhere"):
        with pytest.raises(RevisionNotFoundError, match=f"Invalid rev id: {revision}"):
            api.create_commit(
                repo_id,
                [CommitOperationAdd("a.txt", b"a")],
                commit_message="a",
                revision=revision,
                create_pr=True,
            )
    assert list(api.get_repo_discussions(repo_id)) == []


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
