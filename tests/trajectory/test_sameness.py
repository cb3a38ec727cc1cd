"""Steps that hold the same weights are told, before anything but listings is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import Lines

from hubextrap.localhub import LocalHub
from hubextrap.trajectory import find_trajectory, pin_checkpoints, say_same_weights

Model = Callable[..., dict[str, bytes]]


def test_branches_of_one_upload(hub: LocalHub, repo_id: str, model: Model, lines: Lines) -> None:
    """The commits differ, as their cards do."""
    hub.create_repo(repo_id)
    for step, real in {1000: 4, 2000: 4, 3000: 4, 4000: 4, 5000: 5, 6000: 6, 7000: 5}.items():
        hub.commit(repo_id, model(real) | {"README.md": b"step %d" % step}, revision=f"step{step}")
    found = find_trajectory(repo_id, progress=lines)
    assert found.same_weights == ((1000, 2000, 3000, 4000), (5000, 7000))
    assert len({checkpoint.commit for checkpoint in found.checkpoints}) == 7
    why = "nothing was trained between them, or the upload is wrong; leave out the steps that hold the wrong"
    assert lines.said == [
        f"warning: steps 1000, 2000 and 3000 hold the same weights as step 4000: {why} weights",
        f"warning: step 5000 holds the same weights as step 7000: {why} weights",
    ]


def test_branches_of_one_commit(hub: LocalHub, repo_id: str, model: Model) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, model(1), revision="step_1")
    hub.commit(repo_id, model(2), revision="step_3")
    hub.branch(repo_id, "step_2", "step_1")
    assert find_trajectory(repo_id).same_weights == ((1, 2),)


def test_subfolders_tags_listed_checkpoints_and_a_base(
    hub: LocalHub, repo_id: str, on_main: Callable[[dict[str, bytes]], str], model: Model
) -> None:
    on_main(model(1, "step_1") | model(2, "step_2") | model(1, "step_3") | model(1, "run/huggingface/step_9"))
    hub.create_repo(f"{repo_id}-base")
    hub.commit(f"{repo_id}-base", model(2))
    found = find_trajectory(repo_id, series="step_{step}", base=f"{repo_id}-base")
    assert found.same_weights == ((0, 2), (1, 3))
    listed = pin_checkpoints([(f"{repo_id}:step_1", 5), (f"{repo_id}:step_2", 6), (f"{repo_id}:step_3", 7)])
    assert listed.same_weights == ((5, 7),)


def test_no_request_is_made_for_it(hub: LocalHub, repo_id: str, model: Model) -> None:
    counts = []
    for same in (False, True):
        name = f"{repo_id}-{same}"
        hub.create_repo(name)
        for step in (1, 2, 3):
            hub.commit(name, model(1 if same else step) | {"n": b"%d" % step}, revision=f"step_{step}")
        hub.requests.clear()
        assert bool(find_trajectory(name).same_weights) is same
        counts.append(len(hub.requests))
        assert not any("/resolve/" in request.path for request in hub.requests)
    assert counts[0] == counts[1]


def weights(path: Path, seed: int, size: int = 3_000_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))


@pytest.mark.parametrize("how", ["copied", "hard-linked", "folder linked"])
def test_folders(how: str, tmp_path: Path, lines: Lines) -> None:
    for step in (1, 2, 4):
        weights(tmp_path / f"step_{step}" / "model.safetensors", step)
    first, third = tmp_path / "step_1", tmp_path / "step_3"
    if how == "folder linked":
        third.symlink_to(first)
    else:
        third.mkdir()
        make = {"copied": shutil.copy, "hard-linked": os.link}[how]
        make(first / "model.safetensors", third / "model.safetensors")
    found = find_trajectory(str(tmp_path), progress=lines)
    assert found.same_weights == ((1, 3),)
    assert lines.said[-1].startswith("warning: step 1 holds the same weights as step 3: nothing was trained")


def test_folders_that_differ_a_little(tmp_path: Path) -> None:
    """One weight in a hundred moves by its last bit, as in a step at a small learning rate."""
    start = np.random.default_rng(0).integers(0, 2**16, 2_000_000, dtype=np.uint16)
    for step in range(3):
        moved = start.copy()
        moved[np.random.default_rng(step).choice(len(start), len(start) // 100, replace=False)] ^= 1
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(moved.tobytes())
    assert find_trajectory(str(tmp_path)).same_weights == ()


def test_shards_count_together(tmp_path: Path) -> None:
    for step, seeds in {1: (1, 2), 2: (1, 3), 3: (1, 2)}.items():
        for number, seed in enumerate(seeds):
            weights(tmp_path / f"step_{step}" / f"model-{number}.safetensors", seed, 1000)
    assert find_trajectory(str(tmp_path)).same_weights == ((1, 3),)


def test_many_shards_are_looked_at_behind_their_headers(tmp_path: Path) -> None:
    """All files of a run begin alike."""
    for step, seed in {1: 1, 2: 2, 3: 1}.items():
        for number in range(70):
            file = tmp_path / f"step_{step}" / f"model-{number:05d}-of-00070.safetensors"
            weights(file, 0, 5000)
            with file.open("ab") as stream:
                stream.write(np.random.default_rng([seed, number]).bytes(5000))
    assert find_trajectory(str(tmp_path)).same_weights == ((1, 3),)


def test_words() -> None:
    assert say_same_weights([], 3) == ()
    (line,) = say_same_weights([(1, 2, 3)], 3)
    assert line.startswith(
        "all 3 checkpoints hold the same weights: nothing was trained, or the upload is wrong"
    )
    (line,) = say_same_weights([(1, 2, 3)], 4)
    assert line.startswith("steps 1 and 2 hold the same weights as step 3: nothing was trained between them")


@pytest.mark.parametrize("size", [10, 5000, 33_000, 260_000])
@pytest.mark.parametrize("files", [1, 3])
def test_small_files_differ_in_any_byte(size: int, files: int, tmp_path: Path) -> None:
    """All of a file that is smaller than what is looked at is looked at, from its first byte on."""
    for file in range(files):
        for step in (1, 2):
            name = "model.safetensors" if files == 1 else f"model-{file + 1:05d}-of-{files:05d}.safetensors"
            weights(tmp_path / f"step_{step}" / name, file, size // files)
    path = tmp_path / "step_2" / name
    content = bytearray(path.read_bytes())
    for place in (0, len(content) // 70, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        assert find_trajectory(str(tmp_path)).same_weights == ()
        content[place] ^= 1
    path.write_bytes(content)
    assert find_trajectory(str(tmp_path)).same_weights == ((1, 2),)
