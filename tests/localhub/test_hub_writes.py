"""The unmodified huggingface_hub client writes to the hub."""

from __future__ import annotations

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubextrap.localhub import LocalHub


@pytest.fixture
def api(token: str) -> HfApi:
    return HfApi(token=token)


def test_a_commit_can_be_read_back(hub: LocalHub, api: HfApi, repo_id: str) -> None:
    api.create_repo(repo_id)
    weights = bytes(range(256)) * 1000
    operations = [
        CommitOperationAdd("model.safetensors", weights),
        CommitOperationAdd("config.json", b"{}"),
        CommitOperationAdd("README.md", b"---\nlibrary_name: transformers\n---\nhello"),
    ]
    info = api.create_commit(
        repo_id, operations, commit_message="first", parent_commit=api.model_info(repo_id).sha
    )
    path = api.hf_hub_download(repo_id, "model.safetensors", revision=info.oid)
    with open(path, "rb") as file:  # noqa: PTH123
        assert file.read() == weights
    assert api.model_info(repo_id).sha == info.oid
