"""A mixture as a file: pinned references, never weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hubextrap.errors import CorruptFile, OutputError, ReferenceNotFound
from hubextrap.localhub import LocalHub
from hubextrap.logits import ExtrapolatedForCausalLM

TOKENS = torch.tensor([[5, 2, 6, 11, 8, 5, 4, 12]])
FILE = "hubextrap_logits.json"


def put(hub: LocalHub, repo: str, folder: Path, branch: str) -> str:
    return hub.commit(repo, {file.name: file for file in folder.iterdir()}, revision=branch)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits  # type: ignore[no-any-return]


def test_local_checkpoints_are_found_from_the_manifest(trajectory_c: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (0, 200):
        shutil.copytree(trajectory_c / f"step_{step}", run / f"step_{step}")
    mixed = ExtrapolatedForCausalLM.from_checkpoints(
        [str(run / "step_0"), str(run / "step_200")], [-0.5, 1.5]
    )
    mixed.save_pretrained(run / "mixed")
    assert [file.name for file in (run / "mixed").iterdir()] == [FILE], "no weights, no config of one model"
    content = json.loads((run / "mixed" / FILE).read_text())
    assert [(entry["coefficient"], entry["path"]) for entry in content["checkpoints"]] == [
        (-0.5, "../step_0"),
        (1.5, "../step_200"),
    ]
    run.rename(tmp_path / "moved")
    again = ExtrapolatedForCausalLM.from_pretrained(tmp_path / "moved" / "mixed")
    assert torch.equal(logits(again), logits(mixed))
    shutil.rmtree(tmp_path / "moved" / "step_0")
    with pytest.raises(ReferenceNotFound, match=r"moved/step_0: no such local folder"):
        ExtrapolatedForCausalLM.from_pretrained(tmp_path / "moved" / "mixed")


def test_hub_checkpoints_stay_what_they_were(
    hub: LocalHub, repo_id: str, trajectory_c: Path, tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    commits = [put(hub, repo_id, trajectory_c / f"step_{step}", f"step_{step}") for step in (0, 200)]
    mixed = ExtrapolatedForCausalLM.from_checkpoints(
        [f"{repo_id}@step_0", f"{repo_id}@step_200"], [-0.5, 1.5]
    )
    mixed.save_pretrained(tmp_path)
    expected = logits(mixed)
    put(hub, repo_id, trajectory_c / "step_400", "step_200")
    hub.commit(repo_id, {FILE: tmp_path / FILE}, revision="mixed")
    for reference in (str(tmp_path), f"{repo_id}@mixed"):
        again = ExtrapolatedForCausalLM.from_pretrained(reference)
        assert again.mixture is not None
        assert [checkpoint.commit for checkpoint in again.mixture.checkpoints] == commits
        assert torch.equal(logits(again), expected)


def test_models_that_were_handed_in_cannot_be_saved(mixed_c: Any, tmp_path: Path) -> None:
    own = ExtrapolatedForCausalLM(list(mixed_c.models), mixed_c.coefficients)
    with pytest.raises(OutputError, match=r"made from models in memory, .* from_checkpoints"):
        own.save_pretrained(tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written: File exists"):
        mixed_c.save_pretrained(tmp_path / "file")


def test_a_manifest_that_says_something_wrong(
    mixed_c: Any, hub: LocalHub, repo_id: str, tmp_path: Path
) -> None:
    def refused(message: str, **change: Any) -> None:
        content = json.loads((tmp_path / "good" / FILE).read_text())
        content["checkpoints"][0] |= change
        bad = tmp_path / "bad"  # as deep as the good one: its paths are relative
        bad.mkdir(exist_ok=True)
        (bad / FILE).write_text(json.dumps(content))
        with pytest.raises(CorruptFile, match=message) as caught:
            ExtrapolatedForCausalLM.from_pretrained(bad)
        assert caught.value.file == str(bad / FILE)

    with pytest.raises(CorruptFile, match=r"cannot be read \(No such file"):
        ExtrapolatedForCausalLM.from_pretrained(tmp_path)
    mixed_c.save_pretrained(tmp_path / "good")
    refused(r"checkpoints\.0\.commit: String should match", repo="me/run", commit="main")
    refused(r"me/run is not pinned to a commit; make the mixture again", repo="me/run")
    refused(r"hubextrap_logits\.json: the coefficients 3, 1\.5 sum to 4\.5, not 1", coefficient=3)
    refused(r"checkpoints\.0\.weights: Extra inputs are not permitted", weights="x.bin")
    hub.create_repo(repo_id)
    hub.commit(repo_id, {FILE: tmp_path / "good" / FILE})
    with pytest.raises(CorruptFile, match=r"refers to '.*step_0' on the disk"):
        ExtrapolatedForCausalLM.from_pretrained(repo_id)
    with pytest.raises(ReferenceNotFound, match=r"absent/hubextrap_logits\.json: no such file"):
        ExtrapolatedForCausalLM.from_pretrained(f"{repo_id}:absent")
