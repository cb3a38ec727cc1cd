"""Our own clients follow a repo to its new name, with the token, and nowhere else with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubextrap.errors import HubExtrapError
from hubextrap.hub.push import push_folder
from hubextrap.hub.target import PushTarget
from hubextrap.localhub import Fault, LocalHub
from hubextrap.tensors import Patience, RemoteSource

DATA = bytes(range(256)) * 1000


pytestmark = pytest.mark.usefixtures("hub", "logged_in")


@pytest.fixture
def renamed(hub: LocalHub, repo_id: str) -> tuple[str, str]:
    """The old name of a private repo, and its commit."""
    hub.create_repo(repo_id, private=True)
    commit = hub.commit(repo_id, {"model.safetensors": DATA, "config.json": b"{}"})
    hub.move_repo(repo_id, f"{repo_id}-new")
    return repo_id, commit


def read(source: RemoteSource) -> bytes:
    buffer = bytearray(len(DATA))
    source.read("model.safetensors", 0, memoryview(buffer))
    return bytes(buffer)


def test_weights_are_read(hub: LocalHub, renamed: tuple[str, str]) -> None:
    source = RemoteSource(*renamed)
    assert source.files()["model.safetensors"].size == len(DATA)
    assert read(source) == DATA
    assert source.read_file("config.json") == b"{}"
    assert 307 in {request.status for request in hub.requests}


def test_weights_are_read_from_storage_without_the_token(cdn_hub: LocalHub, repo_id: str) -> None:
    cdn_hub.create_repo(repo_id, private=True)
    commit = cdn_hub.commit(repo_id, {"model.safetensors": DATA})
    cdn_hub.move_repo(repo_id, f"{repo_id}-new")
    assert read(RemoteSource(repo_id, commit)) == DATA
    stored = [request for request in cdn_hub.requests if request.port == cdn_hub.cdn_port]
    assert stored
    assert all("authorization" not in request.headers for request in stored)


@pytest.mark.parametrize("path", ["/resolve/", "/tree/"])
def test_a_redirect_to_another_place_gets_no_token(
    hub: LocalHub, renamed: tuple[str, str], tmp_path: Path, path: str
) -> None:
    with LocalHub(tmp_path / "elsewhere") as elsewhere:
        target = f"{elsewhere.url}/caught"
        hub.faults.add(Fault(path, status=307, headers={"Location": target}, count=20))
        with pytest.raises(HubExtrapError) as failed:
            read(
                RemoteSource(f"{renamed[0]}-new", renamed[1], patience=Patience(attempts=2, first_wait=0.01))
            )
        assert "hf_" not in str(failed.value)
        assert all("authorization" not in request.headers for request in elsewhere.requests)


def test_a_push_to_the_old_name_lands_in_the_repo(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.move_repo(repo_id, f"{repo_id}-new")
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400"))
    api = HfApi()
    assert api.model_info(f"{repo_id}-new", revision="step_400").sha == result.commit
    there = set(api.list_repo_files(f"{repo_id}-new", revision="step_400"))
    assert {path.name for path in prediction.iterdir()} <= there
    posted = [request for request in hub.requests if request.status == 307 and request.method == "POST"]
    assert posted
    assert push_folder(prediction, PushTarget.parse(f"{repo_id}@step_400")).unchanged


def test_a_push_in_other_letter_case(hub: LocalHub, prediction: Path, repo_id: str) -> None:
    hub.create_repo(f"{repo_id}-Case")
    result = push_folder(prediction, PushTarget.parse(f"{repo_id}-case"))
    assert HfApi().model_info(f"{repo_id}-Case").sha == result.commit
    card = Path(HfApi().hf_hub_download(f"{repo_id}-Case", "hubextrap.json"))
    assert json.loads(card.read_text())["target_step"] == 400
