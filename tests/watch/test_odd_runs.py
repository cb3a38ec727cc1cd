"""What becomes of a watched run that nobody planned: repos made anew, uploads given up, files taken away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import Lines
from trainers import push, push_run

import hubextrap
from hubextrap import HubExtrapError, WatchLook
from hubextrap.errors import AmbiguousTrajectory, RecipeError
from hubextrap.localhub import LocalHub
from hubextrap.sample_sizes import SampleChoice
from hubextrap.scans import Scan
from hubextrap.watching import read_history

Checkpoint = Callable[..., Path]
SCAN = "run.scan.safetensors"


def look(run: object, out: Path, sample: SampleChoice = "auto", progress: Lines | None = None) -> WatchLook:
    (found,) = hubextrap.watch(str(run), out, every=None, sample=sample, progress=progress)
    return found


def recipe_of(tmp_path: Path, run: object, steps: object = None, **watch: object) -> Path:
    file = tmp_path / "watch.yaml"
    section = {"repo": str(run), **({} if steps is None else {"steps": steps})}
    file.write_text(yaml.safe_dump({"trajectory": section, "watch": watch}))
    return file


@pytest.fixture
def run(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    for step in (0, 10, 20, 30):
        checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("sample", ["exact", 256])
def test_repo_made_anew_is_read_where_its_weights_are_now(
    run: Path,
    hub: LocalHub,
    repo_id: str,
    logged_in: str,
    tmp_path: Path,
    checkpoint: Checkpoint,
    sample: SampleChoice,
    lines: Lines,
) -> None:
    api, out = push_run(hub, logged_in, repo_id, run, (0, 10, 20, 30)), tmp_path / "out"
    recipe = recipe_of(tmp_path, repo_id, predict={"ahead": 10})
    before = look(recipe, out, sample).hindsight
    api.delete_repo(repo_id)
    hub.create_repo(repo_id)
    for step in (0, 10, 20, 30, 40):
        folder = checkpoint(run, step)
        (folder / "new.txt").write_text("so that commits are others")
        push(api, repo_id, folder, step)
    found = look(recipe, out, sample, lines)
    assert [one.made is not None for one in found.taken] == [True]
    assert any("commits are gone" in line for line in lines.said)
    assert found.hindsight is not None
    assert before is not None
    assert found.hindsight.rows[0].said == before.rows[0].said
    assert read_history(out).replaced == {}
    assert look(recipe, out, sample).steps == ()


@pytest.mark.slow
def test_upload_that_was_given_up_is_left_out_once_two_later_ones_are_whole(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out"
    look(run, out)
    whole = (checkpoint(run, 40) / "model.safetensors").read_bytes()
    (run / "step_40" / "model.safetensors").write_bytes(whole[:-9])
    checkpoint(run, 50)
    assert "waited for" in look(run, out).said[-1]
    checkpoint(run, 60)
    found = look(run, out)
    assert found.steps == (0, 10, 20, 30, 50, 60)
    assert [one.step for one in found.taken] == [50, 60]
    assert "left out until it is" in found.said[-1]
    checkpoint(run, 70)
    assert look(run, out).steps[-1] == 70  # it is not waited for any more
    (run / "step_40" / "model.safetensors").write_bytes(whole)
    assert look(run, out).steps == (0, 10, 20, 30, 40, 50, 60, 70)


@pytest.mark.slow
def test_checkpoint_written_to_by_halves_is_gone_once_two_new_ones_are_whole(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out"
    look(run, out)
    weights = run / "step_10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert look(run, out).steps == ()
    checkpoint(run, 40)
    assert look(run, out).steps == ()
    checkpoint(run, 50)
    assert look(run, out).steps == (0, 20, 30, 40, 50)
    assert read_history(out).gone == {10}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.html", SCAN, "history.jsonl"])
def test_file_that_was_taken_away_is_made_again(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    look(run, out)
    before = (out / name).read_bytes()
    if name == "history.jsonl":
        (out / name).write_bytes(before[: len(before) // 2])
    else:
        (out / name).unlink()
    look(run, out)
    assert (out / name).read_bytes() == before
    assert look(run, out).steps == ()


@pytest.mark.slow
def test_damaged_scan_is_an_error_whose_remedy_works(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out"
    look(run, out)
    (out / SCAN).write_bytes((out / SCAN).read_bytes()[:100])
    checkpoint(run, 40)
    with pytest.raises(HubExtrapError, match="remove it"):
        look(run, out)
    (out / SCAN).unlink()
    look(run, out)
    assert Scan.load(out / SCAN).steps[-1] == 40


@pytest.mark.slow
def test_series_that_comes_beside_it_is_no_hindrance(
    run: Path, tmp_path: Path, checkpoint: Checkpoint, lines: Lines
) -> None:
    out = tmp_path / "out"
    look(run, out)
    for step in (0, 10, 20):
        shutil.copytree(run / f"step_{step}", run / "best" / f"ckpt_{step}")
    checkpoint(run, 40)
    assert look(run, out, progress=lines).steps[-1] == 40
    assert any("this one is followed: folders: step_{step}" in line for line in lines.said)
    with pytest.raises(AmbiguousTrajectory, match="2 series"):
        look(run, tmp_path / "other")


@pytest.mark.slow
def test_run_that_is_not_as_far_as_the_first_step_is_waited_for(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    recipe, out = recipe_of(tmp_path, run, {"min": 40}), tmp_path / "out"
    assert look(recipe, out).said == ("no checkpoint is there yet",)
    checkpoint(run, 40)
    assert look(recipe, out).steps == (40,)


@pytest.mark.slow
def test_first_step_that_is_said_later_counts(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert [one.step for one in look(recipe_of(tmp_path, run), out).taken] == [30]
    assert [one.step for one in look(recipe_of(tmp_path, run, since=20), out).taken] == [20]


@pytest.mark.slow
def test_what_happens_twice_is_told_twice(
    run: Path, tmp_path: Path, checkpoint: Checkpoint, lines: Lines
) -> None:
    following = hubextrap.watch(run, tmp_path / "out", every=0.1, progress=lines)
    next(following)
    for seed in (1, 2, 3):
        checkpoint(run, 20, seed=seed)
        next(following)
    following.close()  # type: ignore[attr-defined]
    assert sum("step 20 was replaced" in line for line in lines.said) == 3


@pytest.mark.slow
def test_predictions_do_not_go_among_the_checkpoints(
    run: Path, hub: LocalHub, repo_id: str, logged_in: str, tmp_path: Path
) -> None:
    hub.create_repo(repo_id)
    to = {"repo": repo_id.upper().replace("ME/", "me/"), "revision": "step_{target_step}"}
    recipe = recipe_of(tmp_path, repo_id, predict=True, push=to)
    with pytest.raises(RecipeError, match="is the run's own"):
        look(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    recipe = recipe_of(tmp_path, repo_id, predict=True, push={"repo": repo_id, "create_pr": True})
    assert look(recipe, tmp_path / "out").said == ("no checkpoint is there yet",)


@pytest.mark.slow
def test_its_folder_may_lie_in_that_of_the_run(run: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    recipe, out = recipe_of(tmp_path, run, predict={"ahead": 10}, since=20), run / "watched"
    assert look(recipe, out).steps == (0, 10, 20, 30)
    assert look(recipe, out).steps == ()
    checkpoint(tmp_path / "made", 40).rename(run / "step_40")
    assert look(recipe, out).steps == (0, 10, 20, 30, 40)
