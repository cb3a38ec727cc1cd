"""Repos that are renamed or duplicated, and names in other letter case."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hubextrap.localhub import LocalHub

WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture
def moved(hub: LocalHub, api: HfApi, repo_id: str) -> str:
    """The old name of a repo that is called repo_id-new by now."""
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    hub.branch(repo_id, "step_1")
    api.create_discussion(repo_id, "a question")
    api.move_repo(repo_id, f"{repo_id}-new")
    hub.requests.clear()
    return repo_id


def statuses(hub: LocalHub) -> set[int]:
    return {request.status for request in hub.requests}


def test_the_old_name_is_redirected(hub: LocalHub, api: HfApi, moved: str) -> None:
    answer = httpx2.get(f"{hub.url}/api/models/{moved}/tree/main?recursive=true&limit=7")
    assert answer.status_code == 307
    assert answer.headers["Location"] == f"/api/models/{moved}-new/tree/main?recursive=true&limit=7"
    assert api.model_info(moved).id == f"{moved}-new"
    assert Path(api.hf_hub_download(moved, "model.safetensors")).read_bytes() == WEIGHTS
    assert [ref.name for ref in api.list_repo_refs(moved).branches] == ["main", "step_1"]
    assert api.get_discussion_details(moved, 1).title == "a question"
    assert {model.id for model in api.list_models(search=moved)} == {f"{moved}-new"}


def test_writing_to_the_old_name(hub: LocalHub, api: HfApi, moved: str) -> None:
    for path, content in (("a.txt", b"a"), ("b.bin", WEIGHTS)):
        api.upload_file(repo_id=moved, path_or_fileobj=content, path_in_repo=path)
    api.create_branch(moved, branch="step_2")
    api.update_repo_settings(moved, private=True)
    assert api.list_repo_files(f"{moved}-new") == [
        ".gitattributes",
        "a.txt",
        "b.bin",
        "config.json",
        "model.safetensors",
    ]
    assert api.model_info(f"{moved}-new", revision="step_2").private
    assert 307 in statuses(hub)


def test_a_repo_is_not_deleted_by_a_name_that_it_had(hub: LocalHub, api: HfApi, moved: str) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(moved)
    assert api.repo_exists(f"{moved}-new")
    with pytest.raises(RepositoryNotFoundError):
        api.move_repo(moved, f"{moved}-newer")


def test_names_in_a_row_and_a_name_taken_again(hub: LocalHub, api: HfApi, moved: str) -> None:
    api.move_repo(f"{moved}-new", f"{moved}-newer")
    assert api.model_info(moved).id == api.model_info(f"{moved}-new").id == f"{moved}-newer"
    api.create_repo(moved)  # whoever takes the old name ends the redirect
    assert api.list_repo_files(moved) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match=f"{moved} already exists") as taken:
        api.move_repo(f"{moved}-newer", moved)
    assert taken.value.response.status_code == 409
    api.delete_repo(moved)
    api.move_repo(f"{moved}-newer", moved)
    assert api.model_info(f"{moved}-new").id == api.model_info(moved).id == moved
    api.delete_repo(moved)
    assert not api.repo_exists(f"{moved}-new")


def test_other_letter_case_is_redirected(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    name = f"{repo_id}-CaSe"
    hub.create_repo(name)
    answer = httpx2.head(f"{hub.url}/{name.lower()}/resolve/main/.gitattributes")
    assert (answer.status_code, answer.headers["Location"]) == (307, f"/{name}/resolve/main/.gitattributes")
    for path, content in (("a.txt", b"a"), ("b.bin", WEIGHTS)):
        api.upload_file(repo_id=name.lower(), path_or_fileobj=content, path_in_repo=path)
    assert api.list_repo_files(name.upper().replace("ME/", "me/")) == [".gitattributes", "a.txt", "b.bin"]
    with pytest.raises(HfHubHTTPError, match=f"already created this model repo: {name}"):
        api.create_repo(name.lower())
    with pytest.raises(FileExistsError):
        hub.create_repo(name.lower())
    api.move_repo(name, name.lower())
    assert api.model_info(name).id == name.lower()


def test_a_name_that_is_hidden_gives_nothing_away(
    hub: LocalHub, stranger: HfApi, anonymous: HfApi, moved: str
) -> None:
    hub.store.get("model", f"{moved}-new")
    HfApi(token=hub.add_token("me")).update_repo_settings(f"{moved}-new", private=True)
    for name in (moved, f"{moved}-NEW"):
        for client, status in ((anonymous, 401), (stranger, 404)):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                client.model_info(name)
            assert hidden.value.response.status_code == status
            assert "Location" not in hidden.value.response.headers


def test_only_the_owner_moves_and_only_to_his_own(
    hub: LocalHub, api: HfApi, stranger: HfApi, anonymous: HfApi, moved: str
) -> None:
    new = f"{moved}-new"
    hub.grant(new, "stranger", write=True)
    reader = HfApi(token=hub.add_token("me", read_only=True))
    cases = [
        (anonymous, new, "me/x", 401),
        (reader, new, "me/x", 403),
        (stranger, new, "stranger/stolen", 403),
        (stranger, new, "me/x", 403),
        (api, new, "stranger/gift", 403),
        (api, new, "me/..", 400),
        (api, new, "me/a--b", 400),
        (api, new, new, 409),
        (api, "me/nowhere", "me/x", 404),
    ]
    for client, old, to, status in cases:
        with pytest.raises(HfHubHTTPError) as refused:
            client.move_repo(old, to)
        assert refused.value.response.status_code == status, (old, to)
    assert api.repo_exists(new)
    assert not (hub.store.root / "models" / "stranger" / "stolen.git").exists()


def test_a_ci_job_does_not_rename_its_repo(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.trust(repo_id, "job")
    asked = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": "job",
        "resource": repo_id,
    }
    job = HfApi(token=httpx2.post(f"{hub.url}/oauth/token", json=asked).json()["access_token"])
    with pytest.raises(HfHubHTTPError, match="token"):
        job.move_repo(repo_id, f"{repo_id}-new")
    api.move_repo(repo_id, f"{repo_id}-new")
    assert httpx2.post(f"{hub.url}/oauth/token", json=asked).status_code == 400
    renewed = httpx2.post(f"{hub.url}/oauth/token", json={**asked, "resource": f"{repo_id}-new"})
    assert renewed.status_code == 200


def test_moves_are_known_after_a_restart(tmp_path: Path) -> None:
    with LocalHub(tmp_path) as hub:
        hub.create_repo("me/old", repo_type="dataset")
        hub.move_repo("me/old", "me/new", repo_type="dataset")
    with LocalHub(tmp_path) as hub:
        assert HfApi(endpoint=hub.url).dataset_info("me/old").id == "me/new"
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url).model_info("me/old")


def test_a_duplicate_has_the_history_and_the_objects(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    source = f"other/{repo_id.partition('/')[2]}"
    hub.create_repo(source)
    first = hub.commit(source, {"model.safetensors": WEIGHTS})
    hub.branch(source, "lfs")  # a name that a folder beside git's has too
    hub.commit(source, {"model.safetensors": WEIGHTS[::-1]})
    hub.tag(source, "v1")
    api.create_pull_request(source, "a change")
    assert api.duplicate_repo(source, repo_id).repo_id == repo_id
    assert [commit.title for commit in api.list_repo_commits(repo_id)][-1] == "initial commit"
    assert api.model_info(repo_id, revision="lfs").sha == first
    assert (
        Path(api.hf_hub_download(repo_id, "model.safetensors", revision="v1")).read_bytes() == WEIGHTS[::-1]
    )
    assert list(api.get_repo_discussions(repo_id)) == []
    assert api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests == []
    hub.store.delete(hub.store.get("model", source))
    path = api.hf_hub_download(repo_id, "model.safetensors", revision="lfs")
    assert Path(path).read_bytes() == WEIGHTS
    folder = hub.store.get("model", repo_id).folder
    checked = subprocess.run(["git", "-C", folder, "fsck", "--strict"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.duplicate_repo(repo_id, repo_id)


def test_what_may_be_duplicated(hub: LocalHub, api: HfApi, stranger: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id, private=True)
    hub.create_repo(f"{repo_id}-gated", gated=True)
    name = os.urandom(4).hex()
    for source, status in ((repo_id, 404), (f"{repo_id}-gated", 403)):
        with pytest.raises(HfHubHTTPError) as refused:
            stranger.duplicate_repo(source, f"stranger/{name}")
        assert refused.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="no rights to write"):
        api.duplicate_repo(repo_id, f"stranger/{name}")
    api.duplicate_repo(repo_id, f"me/{name}")
    assert api.model_info(f"me/{name}").private  # as it was, unless asked for otherwise
    api.duplicate_repo(repo_id, f"me/{name}-open", private=False)
    assert not api.model_info(f"me/{name}-open").private
    hub.grant(f"{repo_id}-gated", "stranger")
    stranger.duplicate_repo(f"{repo_id}-gated", f"stranger/{name}")
    assert stranger.model_info(f"stranger/{name}").gated == "auto"
