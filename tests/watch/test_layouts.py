"""A watched run in each layout: what is there in the end does not depend on when checkpoints were seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi
from trainers import left_behind

import hubextrap
from hubextrap import WatchLook
from hubextrap.localhub import LocalHub
from hubextrap.sample_sizes import SampleChoice

Checkpoint = Callable[..., Path]
STEPS = (0, 10, 20, 30)


def look(run: Path, out: Path, sample: SampleChoice) -> WatchLook:
    (found,) = hubextrap.watch(run, out, every=None, sample=sample)
    return found


class Pushed:
    """A run on the Hub, and how its trainer adds a checkpoint."""

    def __init__(self, hub: LocalHub, token: str, repo: str, layout: str) -> None:
        self.api, self.repo, self.layout, self.reference = HfApi(token=token), repo, layout, repo
        self.hub = hub
        if layout == "repos":
            self.reference = f"{repo}-step-0"
        elif layout == "bucket":
            self.api.create_bucket(repo)
            self.reference = f"hf://buckets/{repo}"
        elif layout == "one folder of the bucket":
            self.api.create_bucket(repo)
            self.reference = f"hf://buckets/{repo}/runs/a"
        else:
            hub.create_repo(repo)

    def add(self, folder: Path, step: int) -> None:
        if self.layout == "tags":
            self.api.upload_folder(repo_id=self.repo, folder_path=folder)
            self.api.create_tag(self.repo, tag=f"step-{step}")
        elif self.layout == "commits":
            self.api.upload_folder(
                repo_id=self.repo, folder_path=folder, commit_message=f"Training in progress, step {step}"
            )
        elif self.layout == "subfolders":
            self.api.upload_folder(repo_id=self.repo, folder_path=folder, path_in_repo=f"checkpoint-{step}")
        elif self.layout == "repos":
            self.hub.create_repo(f"{self.repo}-step-{step}")
            self.api.upload_folder(repo_id=f"{self.repo}-step-{step}", folder_path=folder)
        else:
            at = "runs/a/" if self.layout.startswith("one") else ""
            files = [(str(file), f"{at}checkpoint-{step}/{file.name}") for file in folder.iterdir()]
            self.api.batch_bucket_files(self.repo, add=files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "sample"),
    [
        ("tags", "exact"),
        ("commits", 256),
        ("subfolders", 256),
        ("repos", "exact"),
        ("bucket", 256),
        ("one folder of the bucket", "exact"),
    ],
)
def test_run_grows(
    hub: LocalHub,
    repo_id: str,
    logged_in: str,
    tmp_path: Path,
    checkpoint: Checkpoint,
    layout: str,
    sample: SampleChoice,
) -> None:
    run = Pushed(hub, logged_in, repo_id, layout)
    recipe = tmp_path / "watch.yaml"
    watch = {"predict": {"ahead": 10}, "since": 20}
    recipe.write_text(yaml.safe_dump({"trajectory": {"repo": run.reference}, "watch": watch}))
    out = tmp_path / "one-by-one"
    for number, step in enumerate(STEPS, 1):
        run.add(checkpoint(tmp_path / "run", step), step)
        if number > 1:
            assert look(recipe, out, sample).steps == STEPS[:number]
    assert look(recipe, tmp_path / "at-once", sample).steps == STEPS
    one, other = left_behind(out), left_behind(tmp_path / "at-once")
    assert one.keys() == other.keys()
    # in a branch of folders, commits are those at which checkpoints were first seen
    weights = [name for name in one if layout != "subfolders" or name.endswith("model.safetensors")]
    assert [name for name in weights if one[name] != other[name]] == []
    assert sum(name.endswith("model.safetensors") for name in weights) == 2
