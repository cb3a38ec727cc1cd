"""A place that holds no model: the error names the branches, tags and folders that do, whoever asks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hubextrap.api import verify
from hubextrap.errors import CorruptFile, ReferenceNotFound, UnsupportedCheckpoint
from hubextrap.localhub import Fault, LocalHub
from hubextrap.trajectory import find_trajectory, resolve_checkpoint

Model = Callable[..., dict[str, bytes]]


@pytest.fixture
def predicted(hub: LocalHub, repo_id: str, model: Model) -> str:
    """A repo whose main holds only .gitattributes, and predictions on branches of their own."""
    hub.create_repo(repo_id)
    for step in (400, 600):
        hub.commit(repo_id, model(step) | {"hubextrap.json": b"{}"}, revision=f"step_{step}")
    hub.commit(repo_id, {"notes.md": b""}, revision="notes")
    hub.tag(repo_id, "v1", "step_400")
    return repo_id


def test_branches_and_tags_that_hold_models_are_named(predicted: str) -> None:
    with pytest.raises(UnsupportedCheckpoint) as caught:
        resolve_checkpoint(predicted)
    assert str(caught.value) == (
        f"{predicted}: no weight files in it (.gitattributes); models are in {predicted}@step_600, "
        f"{predicted}@step_400, {predicted}@v1"
    )
    with pytest.raises(
        ReferenceNotFound, match=f"@step_500: no such revision; models are in {predicted}@step_600"
    ):
        resolve_checkpoint(f"{predicted}@step_500")


def test_every_way_to_one_checkpoint_says_so(predicted: str, model: Model, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        for name, content in model(step).items():
            (folder / name).write_bytes(content)
    with pytest.raises(UnsupportedCheckpoint, match=f"{predicted}@step_600"):
        find_trajectory(str(tmp_path), base=predicted)
    with pytest.raises(
        CorruptFile, match=rf"holds no hubextrap\.json; .*; models are in {predicted}@step_600"
    ):
        verify(predicted)
    with pytest.raises(ReferenceNotFound, match=f"no such revision; models are in {predicted}@step_600"):
        verify(f"{predicted}@step_9")


def test_folders_that_hold_models_are_named(
    hub: LocalHub, repo_id: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, model(1, "run/step_20") | model(2, "run/step_100") | {"run/step_7/x": b""})
    for reference in (repo_id, f"{repo_id}:run"):
        with pytest.raises(UnsupportedCheckpoint) as caught:
            resolve_checkpoint(reference)
        said = f"models are in {repo_id}:run/step_100, {repo_id}:run/step_20"
        assert str(caught.value).endswith(f"; {said}"), reference
    monkeypatch.chdir(tmp_path)
    for name, content in model(1, "run/global_step_5/actor/huggingface").items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    with pytest.raises(UnsupportedCheckpoint, match=r"; a model is in run/global_step_5/actor/huggingface$"):
        resolve_checkpoint("run")


def test_only_predictions_are_offered_for_verification(hub: LocalHub, repo_id: str, model: Model) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, model(1), revision="step_1")
    with pytest.raises(CorruptFile, match=r"can be verified$"):
        verify(repo_id)


def test_a_hub_that_does_not_say_leaves_the_error_as_it_was(hub: LocalHub, predicted: str) -> None:
    hub.faults.add(Fault(path="/refs|recursive=True", status=404, count=9))
    with pytest.raises(UnsupportedCheckpoint, match=r"name the folder with them$"):
        resolve_checkpoint(predicted)


def test_eval_names_the_branch(predicted: str) -> None:
    """The command line as a whole process."""
    ended = subprocess.run(
        [sys.executable, "-m", "hubextrap", "eval", predicted, "--tasks", "gsm8k", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
    )
    assert ended.returncode == 1
    assert f"models are in {predicted}@step_600, {predicted}@step_400" in ended.stderr
    assert "Traceback" not in ended.stderr
