"""Who gets in: anonymous, wrong tokens, strangers, members; and what nobody gets out."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hubextrap.localhub import LocalHub


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami(api: HfApi, anonymous: HfApi, hub: LocalHub) -> None:
    assert api.whoami()["name"] == "me"
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    reader = HfApi(token=hub.add_token("me", read_only=True))
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(token="hf_wrong").whoami()
    assert status_of(refused) == 401


def test_a_private_repo_does_not_exist_for_others(
    api: HfApi, stranger: HfApi, anonymous: HfApi, hub: LocalHub, repo_id: str
) -> None:
    hub.create_repo(repo_id, private=True)
    hub.commit(repo_id, {"config.json": b"{}"})
    assert Path(api.hf_hub_download(repo_id, "config.json")).read_bytes() == b"{}"
    for client, status in ((anonymous, 401), (stranger, 404)):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            client.model_info(repo_id)
        assert status_of(hidden) == status
        with pytest.raises(RepositoryNotFoundError):
            client.hf_hub_download(repo_id, "config.json", local_dir=hub.store.root / "elsewhere")
        with pytest.raises(RepositoryNotFoundError):
            client.list_repo_refs(repo_id)
    hub.grant(repo_id, "stranger")
    assert stranger.model_info(repo_id).private
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        stranger.create_branch(repo_id, branch="x")
    hub.grant(repo_id, "stranger", write=True)
    stranger.create_branch(repo_id, branch="x")


def test_a_gated_repo_is_listed_but_not_read(
    api: HfApi, stranger: HfApi, anonymous: HfApi, hub: LocalHub, repo_id: str
) -> None:
    hub.create_repo(repo_id, gated=True)
    hub.commit(repo_id, {"config.json": b"{}", "model.safetensors": b"\0" * 100})
    for client, status in ((anonymous, 401), (stranger, 403)):
        assert client.model_info(repo_id).gated == "auto"
        assert client.list_repo_files(repo_id) == [".gitattributes", "config.json", "model.safetensors"]
        for name in ("config.json", "model.safetensors"):
            with pytest.raises(GatedRepoError) as closed:
                client.hf_hub_download(repo_id, name)
            assert status_of(closed) == status
        with pytest.raises(GatedRepoError):
            client.auth_check(repo_id)
    hub.grant(repo_id, "stranger")
    stranger.auth_check(repo_id)
    assert Path(stranger.hf_hub_download(repo_id, "config.json")).read_bytes() == b"{}"


def test_a_wrong_token_opens_nothing(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"config.json": b"{}"})
    wrong = HfApi(token="hf_wrong")
    for call in (
        lambda: wrong.model_info(repo_id),
        lambda: wrong.get_hf_file_metadata(url=f"{hub.url}/{repo_id}/resolve/main/config.json"),
        lambda: wrong.create_branch(repo_id, branch="x"),
        lambda: wrong.upload_file(repo_id=repo_id, path_or_fileobj=b"x", path_in_repo="x.txt"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert status_of(refused) == 401


def test_who_may_not_write(stranger: HfApi, anonymous: HfApi, hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    reader = HfApi(token=hub.add_token("me", read_only=True))
    for client, status in ((anonymous, 401), (stranger, 403), (reader, 403)):
        for call in (
            lambda client=client: client.create_repo("me/new-repo"),
            lambda client=client: client.delete_repo(repo_id),
            lambda client=client: client.update_repo_settings(repo_id, private=True),
            lambda client=client: client.create_branch(repo_id, branch="x"),
            lambda client=client: client.create_tag(repo_id, tag="x"),
            lambda client=client: client.delete_branch(repo_id, branch="main"),
            lambda client=client: client.auth_check(repo_id, write=True),
            lambda client=client: client.upload_file(
                repo_id=repo_id, path_or_fileobj=b"x", path_in_repo="x.txt"
            ),
        ):
            with pytest.raises(HfHubHTTPError) as refused:
                call()
            assert status_of(refused) == status
    assert [commit.title for commit in anonymous.list_repo_commits(repo_id)] == ["initial commit"]


@pytest.mark.parametrize(
    "name",
    ["../up", "a/..", "a/.git", "a/b.git", "a/b--c", "/b", "a/", "a", "a/b/c", "a/%2e%2e", "a/b\0", "é/b"],
)
def test_bad_repo_names_are_refused(hub: LocalHub, token: str, name: str) -> None:
    with pytest.raises(ValueError, match="is not a repo name"):
        hub.create_repo(name)
    owner, _, repo = name.partition("/")
    answer = httpx2.post(
        f"{hub.url}/api/repos/create",
        json={"name": repo, "organization": owner},
        headers={"Authorization": f"Bearer {hub.add_token(owner)}"},
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/..%2F..%2Fetc/passwd",
        "/../../etc/passwd",
        "/me/%2e%2e/resolve/main/hub.json",
        "/{repo}/resolve/main/../../../hub.json",
        "/{repo}/resolve/main/..%2F..%2Fhub.json",
        "/{repo}/resolve/..%2F..%2Fx/config.json",
        "/api/models/{repo}/tree/main/..%2F..",
        "/lfs/models/{repo}/" + "0" * 64,
    ],
)
def test_no_path_leads_out_of_the_store(hub: LocalHub, repo_id: str, path: str) -> None:
    hub.create_repo(repo_id)
    host, port = hub.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:  # no client would send these unchanged
        first = f"GET {path.format(repo=repo_id)} HTTP/1.1"
        line = f"{first}\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        connection.sendall(line.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"400", b"401", b"404")


def test_the_hub_listens_on_loopback_only(hub: LocalHub) -> None:
    assert hub.url.startswith("http://127.0.0.1:")
