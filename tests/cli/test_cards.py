"""The card that a merge writes is called by the run, wherever and however its checkpoints lie."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_lines import Ground, run_main
from huggingface_hub import HfApi

from hubextrap.hub import read_provenance

STEPS = (0, 10, 20, 30)
VERL = "global_step_{}/actor/huggingface"


def heading(folder: str = "o") -> str:
    return re.findall(r"^# (.*)$", Path(folder, "README.md").read_text(), re.MULTILINE)[0]


def check(name: str, places: str, reference: str, ground: Ground) -> None:
    """A merge, and what its card and its provenance say."""
    ground.recipe("r.yaml", trajectory={"repo": reference})
    ended = run_main("merge", "r.yaml", "--out", "o", "-q")
    assert ended.code == 0, ended
    card = Path("o/README.md").read_text()
    assert heading() == f"{name}, predicted at step 60"
    for step in STEPS:
        assert f"| {step} | {places.format(step)} |" in card
    assert card.count("<details>") == card.count("| tensors | method |") == 1
    assert str(ground.folder) not in card + Path("o/hubextrap.json").read_text()
    assert read_provenance(Path("o")).run_name == name


@pytest.mark.parametrize(
    ("layout", "name", "place"),
    [
        (f"grpo-7b/{VERL}", "grpo-7b", VERL),
        ("out/checkpoint-{}", "out", "checkpoint-{}"),
        ("my-run/checkpoints/iter_000{}", "my-run", "checkpoints/iter_000{}"),
    ],
)
def test_of_a_local_run(layout: str, name: str, place: str, ground: Ground) -> None:
    for step in STEPS:
        shutil.copytree(f"run/step_{step}", layout.format(step))
    check(name, f"local folder `{place}`", str(ground.folder / layout.split("/")[0]), ground)


Upload = Callable[[HfApi, str, int, Path], object]


def branch(api: HfApi, repo: str, step: int, folder: Path) -> None:
    api.create_repo(repo, exist_ok=True)
    api.create_branch(repo, branch=f"step_{step}")
    api.upload_folder(repo_id=repo, folder_path=folder, revision=f"step_{step}")


def subfolder(api: HfApi, repo: str, step: int, folder: Path) -> None:
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, path_in_repo=VERL.format(step))


def sibling(api: HfApi, repo: str, step: int, folder: Path) -> None:
    api.create_repo(f"{repo}-step-{step}")
    api.upload_folder(repo_id=f"{repo}-step-{step}", folder_path=folder)


def commit(api: HfApi, repo: str, step: int, folder: Path) -> None:
    api.create_repo(repo, exist_ok=True)
    title = f"Training in progress, step {step}"
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message=title)


@pytest.mark.parametrize(
    ("upload", "places"),
    [
        (branch, "`{repo}@step_{{}}`"),
        pytest.param(subfolder, f"`{{repo}}@main:{VERL.replace('{}', '{{}}')}`", marks=pytest.mark.slow),
        pytest.param(sibling, "`{repo}-step-{{}}@main`", marks=pytest.mark.slow),
    ],
)
def test_of_a_run_on_the_hub(upload: Upload, places: str, ground: Ground, token: str) -> None:
    api = HfApi(token=token)
    for step in STEPS:
        upload(api, ground.repo, step, ground.folder / f"run/step_{step}")
    ground.recipe("r.yaml", trajectory={"repo": ground.repo})
    assert run_main("merge", "r.yaml", "--out", "o", "-q").code == 0
    card = Path("o/README.md").read_text()
    assert heading() == f"{ground.repo.rpartition('/')[2]}, predicted at step 60"
    for step in STEPS:
        assert f"| {step} | {places.format(repo=ground.repo).format(step)} |" in card
    assert '"run":' not in Path("o/hubextrap.json").read_text()


@pytest.mark.slow
def test_of_the_commits_of_one_branch(ground: Ground, token: str) -> None:
    api = HfApi(token=token)
    for step in STEPS:
        commit(api, ground.repo, step, ground.folder / f"run/step_{step}")
    ground.recipe("r.yaml", trajectory={"repo": ground.repo})
    assert run_main("merge", "r.yaml", "--out", "o", "-q").code == 0
    assert heading() == f"{ground.repo.rpartition('/')[2]}, predicted at step 60"
