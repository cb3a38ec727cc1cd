"""What the hub tells of repos, of commits and of requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubextrap.localhub import Fault, LocalHub


@pytest.fixture
def model(hub: LocalHub, repo_id: str) -> str:
    hub.create_repo(repo_id)
    hub.commit(
        repo_id, {"README.md": b"---\nlibrary_name: transformers\ntags: [a]\n---\n", "w.bin": b"x" * 5000}
    )
    return repo_id


def test_expand_tells_what_is_asked_for_and_no_more(hub: LocalHub, anonymous: HfApi, model: str) -> None:
    info = anonymous.model_info(model, expand=["author", "downloadsAllTime"])
    assert (info.author, info.downloads_all_time) == ("me", 0)
    assert (info.sha, info.created_at, info.siblings, info.downloads) == (None, None, None, None)
    info = anonymous.model_info(model, expand=["siblings", "sha", "cardData", "usedStorage"])
    assert [file.rfilename for file in info.siblings or []] == [".gitattributes", "README.md", "w.bin"]
    assert info.card_data is not None
    assert info.card_data["library_name"] == "transformers"
    assert info.used_storage is not None
    assert info.used_storage > 5000
    assert info.tags is None
    (listed,) = anonymous.list_models(search=model, expand=["tags"])
    assert (listed.id, listed.tags, listed.sha) == (model, ["a"], None)
    raw = httpx2.get(f"{hub.url}/api/models/{model}?expand[]=sha&expand[]=private").json()
    assert set(raw) == {"_id", "id", "modelId", "sha", "private"}


def test_expand_refuses_what_there_is_not(hub: LocalHub, api: HfApi, model: str, repo_id: str) -> None:
    api.create_repo(repo_id, repo_type="dataset")
    api.create_repo(repo_id, repo_type="space", space_sdk="static")
    calls = [
        lambda: api.model_info(model, expand=["foo"]),  # type: ignore[list-item]
        lambda: api.model_info(model, expand=["sha", "citation"]),  # type: ignore[list-item]
        lambda: api.dataset_info(repo_id, expand=["gguf"]),  # type: ignore[list-item]
        lambda: api.space_info(repo_id, expand=["gated"]),  # type: ignore[list-item]
        lambda: list(api.list_models(expand=["foo"])),  # type: ignore[list-item]
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError, match=r'"expand" must be one of \[') as refused:
            call()
        assert refused.value.response.status_code == 400


def test_the_repos_of_an_account(hub: LocalHub, api: HfApi, stranger: HfApi, model: str) -> None:
    name = f"lister-{uuid.uuid4().hex[:8]}"
    token = hub.add_token(name)
    owner = HfApi(token=token)
    hub.create_repo(f"{name}/open")
    hub.commit(f"{name}/open", {"w.bin": b"x" * 5000})
    hub.create_repo(f"{name}/closed", private=True)
    hub.create_repo(f"{name}/data", repo_type="dataset")
    repos = {(repo.id, repo.type): repo for repo in owner.list_user_repos()}
    assert set(repos) == {
        (f"{name}/open", "model"),
        (f"{name}/closed", "model"),
        (f"{name}/data", "dataset"),
    }
    assert repos[f"{name}/open", "model"].storage > 5000
    assert repos[f"{name}/closed", "model"].visibility == "private"
    assert [repo.id for repo in owner.list_user_repos(namespace=name)] == [key[0] for key in repos]
    for client, status in ((stranger, 403), (HfApi(token=False), 401)):
        with pytest.raises(HfHubHTTPError) as refused:
            list(client.list_user_repos(namespace=name))
        assert refused.value.response.status_code == status
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "huggingface_hub.cli.hf",
            "repos",
            "ls",
            "--type",
            "model",
            "--format",
            "json",
        ],
        env={**os.environ, "HF_TOKEN": token},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {repo["id"] for repo in json.loads(ran.stdout)} == {f"{name}/open", f"{name}/closed"}


def test_commits_as_html_where_asked_for(hub: LocalHub, anonymous: HfApi, model: str) -> None:
    hub.commit(model, {"a.txt": b"a"}, message="a < b & c\n\nfirst <b>\n\nsecond")
    plain = anonymous.list_repo_commits(model)[0]
    assert (plain.title, plain.formatted_title) == ("a < b & c", None)
    formatted = anonymous.list_repo_commits(model, formatted=True)[0]
    assert formatted.title == plain.title
    assert formatted.formatted_title == "a &lt; b &amp; c"
    assert formatted.formatted_message == "<p>first &lt;b&gt;</p><p>second</p>"
    raw = httpx2.get(f"{hub.url}/api/models/{model}/commits/main?formatted=true").json()
    assert raw[0]["formatted"]["title"] == formatted.formatted_title


def test_every_answer_names_its_request(hub: LocalHub, anonymous: HfApi, model: str) -> None:
    urls = [f"{hub.url}/api/models/{model}", f"{hub.url}/{model}/resolve/main/nowhere", f"{hub.url}/nowhere"]
    for url in urls:
        for header in ("X-Request-Id", "X-Amzn-Trace-Id"):
            assert httpx2.get(url, headers={header: "mine-1"}).headers["X-Request-Id"] == "mine-1"
        assert len(httpx2.get(url).headers["X-Request-Id"]) == 32
    odd = httpx2.get(urls[0], headers={"X-Request-Id": "a b;<script>"})
    assert odd.headers["X-Request-Id"] != "a b;<script>"
    hub.faults.add(Fault(path="/api/models", status=500, count=10))
    with pytest.raises(HfHubHTTPError) as failed:
        anonymous.model_info(model)
    assert failed.value.request_id == failed.value.response.request.headers["X-Amzn-Trace-Id"]
    assert str(failed.value.request_id) in str(failed.value)
