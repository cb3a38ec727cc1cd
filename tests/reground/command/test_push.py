"""Every round's checkpoints as branches of a repo; and a start that lies on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Lines
from huggingface_hub import HfApi

from hubextrap import api
from hubextrap.errors import HubExtrapError, PushError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.recipe import load_reground_recipe

Setting = Any


pytestmark = pytest.mark.usefixtures("logged_in")


def run(setting: Setting, **arguments: Any) -> api.RegroundResult:
    return api.reground(load_reground_recipe(setting.recipe), setting.out, **arguments)


def branches(repo: str) -> dict[str, int]:
    """Every branch but main and how many commits of ours it has."""
    api = HfApi()
    names = [ref.name for ref in api.list_repo_refs(repo).branches if ref.name != "main"]
    return {
        name: sum("step" in commit.title for commit in api.list_repo_commits(repo, revision=name))
        for name in names
    }


def test_real_and_extrapolated_checkpoints_become_branches(
    hub: LocalHub, repo_id: str, setting: Callable[..., Setting], lines: Lines
) -> None:
    """A push that fails in between is gone on with, and nothing is committed twice."""
    setting = setting(push={"repo": repo_id}, iterations=2)
    hub.faults.add(Fault(r"/commit/extrapolated-rl4-step8", "POST", status=403))
    with pytest.raises(PushError, match="the Hub answered 403"):
        run(setting)
    assert branches(repo_id) == {"real-rl4-step4": 1, "extrapolated-rl4-step8": 0} or branches(repo_id) == {
        "real-rl4-step4": 1
    }
    trained = (setting.out / "round-001" / "train.log").read_text()
    hub.faults.clear()
    run(setting, progress=lines)
    assert f"{repo_id}@real-rl4-step4: is there already" in " ".join(lines.said)
    assert branches(repo_id) == {
        "real-rl4-step4": 1,
        "extrapolated-rl4-step8": 1,
        "real-rl8-step12": 1,
    }
    assert (setting.out / "round-001" / "train.log").read_text() == trained
    files = {branch: set(HfApi().list_repo_files(repo_id, revision=branch)) for branch in branches(repo_id)}
    model = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}
    assert files["real-rl4-step4"] >= model
    assert "trainer_state.json" not in files["real-rl4-step4"]
    assert files["extrapolated-rl4-step8"] >= model | {"hubextrap.json", "README.md"}
    assert not api.verify(f"{repo_id}@extrapolated-rl4-step8").problems


def test_the_real_ones_are_a_trajectory(hub: LocalHub, repo_id: str, setting: Callable[..., Setting]) -> None:
    """Predictions are passed over, as everywhere."""
    from hubextrap import find_trajectory

    run(setting(push={"repo": repo_id}, iterations=2))
    found = find_trajectory(repo_id, pattern="{kind}-rl{rl}-step{step}")
    assert [(one.step, one.revision) for one in found.checkpoints] == [
        (4, "real-rl4-step4"),
        (12, "real-rl8-step12"),
    ]


def test_a_start_on_the_hub_is_pinned(
    hub: LocalHub, repo_id: str, setting: Callable[..., Setting], start: Path, undisturbed: Setting
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {path.name: path for path in start.iterdir()})
    setting = setting(model=repo_id, iterations=1)
    run(setting)
    commit = HfApi().model_info(repo_id).sha
    hub.commit(repo_id, {"model.safetensors": b"somebody's later push"})
    setting.change(iterations=2)
    run(setting)
    state = json.loads((setting.out / "state.json").read_text())
    assert state["start"]["commit"] == commit
    assert setting.history()[0]["rl_steps"] == 4
    weights = Path("round-001/output/checkpoint-4/model.safetensors")
    assert (setting.out / weights).read_bytes() == (undisturbed.out / weights).read_bytes()


def test_a_repo_that_may_not_be_written(
    hub: LocalHub, setting: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before anything is trained."""
    monkeypatch.setenv("HF_TOKEN", "")
    setting = setting(push={"repo": "me/model"})
    with pytest.raises(PushError, match="me/model"):
        run(setting)
    assert not (setting.out / "round-001").exists()


@pytest.mark.usefixtures("logged_in")
def test_what_refuses_a_run_is_found_before_its_start_is_downloaded(
    hub: LocalHub, setting: Callable[..., Setting], start: Path, repo_id: str, tmp_path: Path
) -> None:
    hub.create_repo(f"{repo_id}-start")
    hub.commit(f"{repo_id}-start", {path.name: path for path in start.iterdir()})
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"a.txt": b"x"}, revision="extrapolated-rl4-step8/old")
    refused = (
        ({"push": {"repo": repo_id}}, "has a branch extrapolated-rl4-step8/old"),
        ({"push": {"repo": "somebody/else"}}, "cannot make one for somebody"),
        ({"guard": {"max_error": "off", "prompts": str(tmp_path / "absent.jsonl")}}, "cannot be read"),
    )
    for section, said in refused:
        hub.requests.clear()
        one = setting(model=f"{repo_id}-start", **section)
        with pytest.raises(HubExtrapError, match=said):
            run(one)
        assert not [request for request in hub.requests if "-start/resolve" in request.path]
        assert not one.out.exists()
