"""The same beside checkpoints on the Hub: in every layout, with --cache, and where predictions are pushed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Lines
from huggingface_hub import HfApi
from runs_on_a_clock import STATE, STEPS, Moving, area, recipe, state

from hubextrap import PushTarget, ReadingOptions, Run
from hubextrap.api import MergeOptions, backtest, merge, plan, verify
from hubextrap.errors import ClockError, RecipeError, SourceError
from hubextrap.hub.provenance_checks import read_provenance
from hubextrap.localhub import Fault, LocalHub
from hubextrap.patience import Patience
from hubextrap.recipe import parse_recipe
from hubextrap.trajectory import find_trajectory


def files(folder: Path, under: str = "") -> dict[str, bytes | Path | None]:
    return {f"{under}{file.name}": file for file in sorted(folder.iterdir())}


@pytest.fixture
def branches(hub: LocalHub, repo_id: str, run: Path) -> str:
    hub.create_repo(repo_id)
    for step in STEPS:
        hub.commit(repo_id, files(run / f"checkpoint-{step}"), revision=f"step_{step}")
    hub.requests.clear()
    return repo_id


@pytest.fixture
def folders(hub: LocalHub, repo_id: str, run: Path) -> str:
    name = f"{repo_id}-folders"
    hub.create_repo(name)
    for step in STEPS:
        hub.commit(name, files(run / f"checkpoint-{step}", f"checkpoint-{step}/"))
    return name


@pytest.mark.parametrize("layout", ["branches", "folders"])
@pytest.mark.parametrize("cache", [False, True])
def test_every_layout(
    layout: str, cache: bool, moving: Moving, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    repo = request.getfixturevalue(layout)
    merge(recipe(repo), out=tmp_path / "out", settings=MergeOptions(cache=cache))
    assert moving.is_at(tmp_path / "out", area(80))
    clock = read_provenance(tmp_path / "out").clock
    assert clock is not None
    place = "checkpoint-60/" if layout == "folders" else ""
    assert f"{place}{STATE} up to step 60; linear to step 100" in clock.said


def test_what_lies_on_the_hub_and_on_disk_is_one_run(branches: str, run: Path, tmp_path: Path) -> None:
    for name, repo in (("hub", branches), ("disk", run)):
        merge(recipe(repo, 80, "calibrated"), out=tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("hub", "disk"))
    assert one == other
    assert backtest(find_trajectory(branches)).rows == backtest(find_trajectory(str(run))).rows


def test_the_state_is_of_the_commit_that_was_pinned(
    hub: LocalHub, branches: str, moving: Moving, tmp_path: Path
) -> None:
    with Run.of(recipe(branches)) as opened:
        hub.commit(branches, {STATE: b"poison"}, revision="step_60")
        merge(recipe(branches), out=tmp_path / "out", run=opened)
    assert moving.is_at(tmp_path / "out", area(80))


def test_one_state_is_read_and_no_other(hub: LocalHub, branches: str, tmp_path: Path) -> None:
    merge(recipe(branches), out=tmp_path / "out")
    read = {request.path.partition("?")[0] for request in hub.requests if STATE in request.path}
    sha = HfApi().model_info(branches, revision="step_60").sha
    assert read == {f"/{branches}/resolve/{sha}/{STATE}"}


def test_a_hub_that_does_not_answer_changes_no_prediction(
    hub: LocalHub, branches: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    monkeypatch.setattr("hubextrap.tensors.remote.Patience", lambda: Patience(attempts=2, first_wait=0.01))
    hub.faults.add(Fault(f"/resolve/[0-9a-f]+/{STATE}", status=503, count=100))
    with pytest.raises(SourceError, match=STATE):
        merge(recipe(branches), out=tmp_path / "out", progress=lines)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(hub: LocalHub, branches: str, tmp_path: Path, lines: Lines) -> None:
    hub.commit(branches, {STATE: None}, revision="step_60")
    merge(recipe(branches), out=tmp_path / "one", progress=lines)
    said = "beside step 50, and none beside step 60, so steps are the clock"
    assert any(said in line for line in lines.said)
    hub.commit(branches, {STATE: None, "training_args.bin": b"\x80"}, revision="step_50")
    hub.commit(branches, {"scheduler.pt": b"\x80"}, revision="step_60")
    lines.said.clear()
    merge(recipe(branches), out=tmp_path / "two", progress=lines)
    assert any("scheduler.pt beside step 60 is a pickle, which is not read" in line for line in lines.said)
    with pytest.raises(ClockError, match=r"scheduler\.pt beside step 60"):
        merge(recipe(branches, trajectory={"clock": "learning_rate"}), out=tmp_path / "three")


def test_a_model_at_the_root_with_its_last_checkpoint(
    hub: LocalHub, repo_id: str, run: Path, moving: Moving, tmp_path: Path, lines: Lines
) -> None:
    """hub_strategy: checkpoint makes two commits of a save: the model, then last-checkpoint."""
    hub.create_repo(repo_id)
    for step in STEPS:
        model = files(run / f"checkpoint-{step}")
        beside = model.pop(STATE)
        hub.commit(repo_id, model, message=f"Training in progress, step {step}")
        last = {f"last-checkpoint/{STATE}": beside, "last-checkpoint/scheduler.pt": b"\x80"}
        hub.commit(repo_id, last, message=f"Training in progress, step {step}, checkpoint")
    title = "Training in progress, step {step}"
    series = [{"steps": {"pattern": pattern}} for pattern in (f"{title}, checkpoint", title)]
    for cache in (False, True):
        out = tmp_path / f"cache {cache}"
        merge(recipe(repo_id, trajectory=series[0]), out=out, settings=MergeOptions(cache=cache))
        assert moving.is_at(out, area(80))
        assert not (out / "last-checkpoint").exists()
    # the commit before holds the state of the save before
    merge(recipe(repo_id, trajectory=series[1]), out=tmp_path / "without", progress=lines)
    assert any("this file is from step 50, but its checkpoint is step 60" in line for line in lines.said)


@pytest.mark.usefixtures("logged_in")
def test_full_rate_steps_are_pushed(hub: LocalHub, branches: str, moving: Moving, tmp_path: Path) -> None:
    """A branch for each, called by the step; each verified, and the card says what it is."""
    push = {"repo": f"{branches}-predicted", "revision": "step_{target_step}"}
    given = recipe(branches, {"full_rate_steps": [20, 45]}, push=push)
    report = plan(given)
    assert report.problems == ()
    assert report.outputs == tuple(f"hf://{branches}-predicted@step_{step}" for step in (80, 105))
    found = merge(given)
    assert [str(prediction.target) for prediction in found.predictions]
    for step, count in ((80, 20), (105, 45)):
        name = f"{branches}-predicted@step_{step}"
        assert verify(name).problems == ()
        local = HfApi().snapshot_download(
            f"{branches}-predicted", revision=f"step_{step}", local_dir=tmp_path / name
        )
        assert moving.is_at(Path(local), area(60) + count)
        card = Path(local, "README.md").read_text()
        assert f"predicted {count} full-rate steps after step 60" in card
        assert "clock: learning rate" in card
    elsewhere = recipe(branches, {"full_rate_steps": 20})
    merge(elsewhere, push=[PushTarget.parse(f"{branches}-other")])
    assert verify(f"{branches}-other").problems == ()


def test_several_need_a_branch_each(branches: str) -> None:
    with pytest.raises(RecipeError, match=r"push.revision needs \{target_step\}"):
        recipe(branches, {"full_rate_steps": [20, 45]}, push={"repo": "a/b"})


def test_a_recipe_of_the_hub_is_made_again(branches: str, tmp_path: Path) -> None:
    first = merge(recipe(branches, {"full_rate_steps": 20}, "calibrated"), out=tmp_path / "one").predictions[
        0
    ]
    again = merge(parse_recipe(first.provenance.recipe), out=tmp_path / "two").predictions[0]
    assert again.provenance == first.provenance


@pytest.mark.parametrize("content", [b"[]", b'{"log_history": 1}', b"\xff", json.dumps(state(40)).encode()])
def test_a_bad_state_on_the_hub(
    content: bytes, hub: LocalHub, branches: str, tmp_path: Path, lines: Lines
) -> None:
    hub.commit(branches, {STATE: content}, revision="step_60")
    with Run.of(recipe(branches), ReadingOptions(), progress=lines) as opened:
        assert opened.clock.name == "steps"
    (warning,) = [line for line in lines.said if line.startswith("warning: ")]
    assert STATE in warning
