"""The check of a card's metadata: what the Hub refuses, what it warns of, and where it looks."""

from __future__ import annotations

import warnings
from typing import Any

import httpx2
import pytest
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from hubextrap.localhub import LocalHub

RESULT = {
    "task": {"type": "text-generation"},
    "dataset": {"type": "openai/gsm8k", "name": "GSM8K"},
    "metrics": [{"type": "exact_match", "value": 0.7}],
}


def index(**changes: Any) -> dict[str, Any]:
    """A model-index with one result; a change that is None takes that part out."""
    result = {name: value for name, value in (RESULT | changes).items() if value is not None}
    return {"model-index": [{"name": "m", "results": [result]}]}


GOOD = {
    "usual": {"license": "apache-2.0", "tags": ["a"], "datasets": ["openai/gsm8k"], "language": "en"},
    "lists": {"license": ["mit", "gpl-3.0"], "language": ["en", "zh"], "base_model": ["me/a", "gpt2"]},
    "other": {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
    "results": index(),
    "a merge": {"base_model": "me/a", "base_model_relation": "merge", "pipeline_tag": "text-generation"},
    "fields that nobody knows": {"whatever": 3, "date": "2024-01-01"},
}
BAD = {
    "unknown licence": ({"license": "Apache 2.0"}, '"license" must be one of [apache-2.0, mit,'),
    "one unknown of two": ({"license": ["mit", "asdf"]}, '"license" must be one of ['),
    "licence of numbers": ({"license": 2}, '"license" must be a string'),
    "licence is null": ({"license": None}, '"license" must be a string'),
    "null dataset": ({"datasets": ["a/b", None]}, '"datasets[1]" must be a string'),
    "empty base model": ({"base_model": ""}, '"base_model" is not allowed to be empty'),
    "a path as base": ({"base_model": "/home/me/x"}, '"base_model" with value "/home/me/x" is not valid'),
    "a mapping as base": ({"base_model": {"a": 1}}, '"base_model" must be a string'),
    "relation": ({"base_model_relation": "cousin"}, '"base_model_relation" must be one of [adapter,'),
    "tags": ({"tags": [1]}, '"tags[0]" must be a string'),
    "language": ({"language": [False]}, '"language[0]" must be a string'),  # `language: [no]` in YAML
    "pipeline tag": ({"pipeline_tag": ["text-generation"]}, '"pipeline_tag" must be a string'),
    "index is text": ({"model-index": "foo"}, '"model-index" must be an array'),
    "index of texts": ({"model-index": ["m"]}, '"model-index[0]" must be of type object'),
    "no name": ({"model-index": [{"results": []}]}, '"model-index[0].name" is required'),
    "no results": ({"model-index": [{"name": "m"}]}, '"model-index[0].results" is required'),
    "no task": (index(task=None), '"model-index[0].results[0].task" is required'),
    "no task type": (index(task={"name": "x"}), '"model-index[0].results[0].task.type" is required'),
    "no dataset": (index(dataset=None), '"model-index[0].results[0].dataset" is required'),
    "no dataset name": (index(dataset={"type": "x"}), 'results[0].dataset.name" is required'),
    "dataset is text": (index(dataset="gsm8k"), 'results[0].dataset" must be of type object'),
    "no metrics": (index(metrics=None), '"model-index[0].results[0].metrics" is required'),
    "no value": (index(metrics=[{"type": "acc"}]), 'results[0].metrics[0].value" is required'),
}


def card(metadata: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(metadata)}---\n# A model\n"


@pytest.mark.parametrize("metadata", GOOD.values(), ids=GOOD)
def test_what_the_hub_takes(hub: LocalHub, api: HfApi, repo_id: str, metadata: dict[str, Any]) -> None:
    ModelCard(card(metadata)).validate()
    api.create_repo(repo_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Warnings while validating")
        api.upload_file(repo_id=repo_id, path_or_fileobj=card(metadata).encode(), path_in_repo="README.md")
    assert api.model_info(repo_id).card_data is not None


@pytest.mark.slow
@pytest.mark.parametrize(("metadata", "why"), BAD.values(), ids=BAD)
def test_what_the_hub_refuses(
    hub: LocalHub, token: str, repo_id: str, metadata: dict[str, Any], why: str
) -> None:
    body = {"content": card(metadata), "repoType": "model"}
    answer = httpx2.post(f"{hub.url}/api/validate-yaml", json=body)
    assert answer.status_code == 400
    assert any(why in error["message"] for error in answer.json()["errors"])
    text = httpx2.post(f"{hub.url}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
    assert (text.status_code, text.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
    assert text.text.startswith("- Error: ")
    assert why in text.text
    hub.create_repo(repo_id)
    line = '{"key": "header", "value": {"summary": "x"}}\n'
    file = {"key": "file", "value": {"path": "README.md", "content": card(metadata), "encoding": "utf-8"}}
    commit = httpx2.post(
        f"{hub.url}/api/models/{repo_id}/commit/main",
        content=line + httpx2.Request("POST", "http://x", json=file).read().decode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    assert commit.status_code == 400
    assert "Invalid metadata in README.md" in commit.json()["error"]
    assert why in commit.json()["error"]
    assert HfApi(token=token).list_repo_files(repo_id) == [".gitattributes"]


@pytest.mark.parametrize(
    "readme",
    [
        "---\nlicense: asdf\n---\n",
        "\n---\nlicense: asdf\n---\n",
        " \r\n---\r\nlicense: asdf\r\n---\r\n# Text",
        "---\nlicense: asdf\n---",
        "---\nlicense: asdf\n---  \ntext",
    ],
)
def test_where_the_metadata_may_begin_and_end(hub: LocalHub, api: HfApi, repo_id: str, readme: str) -> None:
    api.create_repo(repo_id)
    with pytest.raises(ValueError, match='"license" must be one of'):
        api.upload_file(repo_id=repo_id, path_or_fileobj=readme.encode(), path_in_repo="README.md")


@pytest.mark.parametrize(
    "readme", ["---\ntags: [a\n---\n", "---\n- a list\n---\n", "---\nd: " + "9" * 5000 + "\n---\n"]
)
def test_metadata_that_cannot_be_read(hub: LocalHub, api: HfApi, repo_id: str, readme: str) -> None:
    api.create_repo(repo_id)
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(repo_id=repo_id, path_or_fileobj=readme.encode(), path_in_repo="README.md")


@pytest.mark.parametrize(
    "readme", ["# no metadata", "", "---\n\n---\ntext", "text\n---\nlicense: asdf\n---\n"]
)
def test_a_card_without_metadata_is_warned_of(hub: LocalHub, api: HfApi, repo_id: str, readme: str) -> None:
    api.create_repo(repo_id)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata in repo card"):
        api.upload_file(repo_id=repo_id, path_or_fileobj=readme.encode(), path_in_repo="README.md")
    assert "README.md" in api.list_repo_files(repo_id)


def test_a_licence_without_a_name_is_warned_of(api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    with pytest.warns(UserWarning, match='"license_name" should name the license'):
        api.upload_file(
            repo_id=repo_id, path_or_fileobj=card({"license": "other"}).encode(), path_in_repo="README.md"
        )


def test_only_the_card_at_the_root_is_checked(api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    bad = card({"license": "asdf"}).encode()
    operations = [CommitOperationAdd(path, bad) for path in ("docs/README.md", "readme.txt")]
    api.create_commit(repo_id, operations, commit_message="elsewhere")


def test_what_belongs_to_the_kind_of_repo(hub: LocalHub, api: HfApi, token: str, repo_id: str) -> None:
    answers = {
        kind: httpx2.post(
            f"{hub.url}/api/validate-yaml",
            json={"content": card({"model-index": "foo", "sdk": "fortran"}), "repoType": kind},
        )
        for kind in ("model", "dataset", "space", "shed")
    }
    assert [error["message"] for error in answers["model"].json()["errors"]] == [
        '"model-index" must be an array'
    ]
    assert answers["dataset"].json()["errors"] == []
    assert [error["message"] for error in answers["space"].json()["errors"]] == [
        '"sdk" must be one of [gradio, streamlit, docker, static]'
    ]
    assert answers["shed"].status_code == 400
    refused = httpx2.post(
        f"{hub.url}/api/repos/create",
        json={"name": repo_id.partition("/")[2], "type": "space", "sdk": "fortran"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert (refused.status_code, refused.json()["error"][:20]) == (400, '"sdk" must be one of')
    api.create_repo(repo_id, repo_type="space", space_sdk="static")
    assert api.space_info(repo_id).sdk == "static"


def test_dates_in_a_card_are_listed_as_text(hub: LocalHub, anonymous: HfApi, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"README.md": b"---\nreleased: 2024-01-31\ntags: [2024-01-31, a]\n---\n"})
    info = anonymous.model_info(repo_id)
    assert info.card_data is not None
    assert info.card_data["released"] == "2024-01-31"
