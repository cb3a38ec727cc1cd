"""What became of a run since it was looked at last, in each layout: new, replaced, gone, not whole yet."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hubextrap.localhub import LocalHub
from hubextrap.trajectory import Pins, find_trajectory
from hubextrap.trajectory.changes import Changes, SeenCheckpoint, changes_since

Model = Callable[..., dict[str, bytes]]
Seen = dict[int, SeenCheckpoint]


def look(reference: str, before: Seen | None = None, **options: object) -> Changes:
    pins = Pins()
    return changes_since(before or {}, find_trajectory(reference, pins=pins, **options), pins)  # type: ignore[arg-type]


def kept(changes: Changes) -> Seen:
    """What a file kept of it."""
    text = json.dumps([one.as_json() for one in changes.now.values()])
    return {one.step: one for one in map(SeenCheckpoint.from_json, json.loads(text))}


def steps(changes: Changes) -> tuple[list[int], list[int], list[int], list[int]]:
    """Of those that are new, replaced, gone and unfinished."""
    return (
        [one.step for one in changes.new],
        [one.now.step for one in changes.replaced],
        [one.step for one in changes.gone],
        [over.checkpoint.step for over in changes.unfinished],
    )


class OnTheHub:
    """A run in one of the layouts."""

    def __init__(self, hub: LocalHub, repo: str, model: Model, layout: str) -> None:
        self.hub, self.repo, self.model, self.layout = hub, repo, model, layout
        hub.create_repo(repo)

    def push(self, step: int, files: dict[str, bytes | None]) -> None:
        name = f"step_{step}"
        if self.layout == "branches":
            self.hub.commit(self.repo, files, revision=name)
        elif self.layout == "subfolders":
            self.hub.commit(self.repo, {f"{name}/{file}": content for file, content in files.items()})
        else:
            self.hub.commit(self.repo, files, message=f"Training in progress, step {step}")

    def trained(self, *those: int) -> None:
        for step in those:
            self.push(step, self.model(step))


@pytest.fixture(params=["branches", "subfolders", "commits"])
def run(request: pytest.FixtureRequest, hub: LocalHub, repo_id: str, model: Model) -> OnTheHub:
    return OnTheHub(hub, repo_id, model, request.param)


def test_new_ones(run: OnTheHub) -> None:
    run.trained(100, 200)
    first = look(run.repo)
    assert steps(first) == ([100, 200], [], [], [])
    assert first
    again = look(run.repo, kept(first))
    assert (steps(again), bool(again), again.lines()) == (([], [], [], []), False, ())
    run.trained(300, 400)
    found = look(run.repo, kept(first))
    assert steps(found) == ([300, 400], [], [], [])
    assert [one.step for one in found.ready] == [300, 400]
    line = found.lines()[0]
    commit = find_trajectory(run.repo).checkpoints[2].commit
    assert line.startswith(f"step 300 is new: {run.repo}@")
    assert line.endswith(f"({commit[:8] if commit else ''})")


@pytest.mark.parametrize("layout", ["branches", "subfolders"])
def test_a_card_alone_is_no_other_checkpoint(hub: LocalHub, repo_id: str, model: Model, layout: str) -> None:
    run = OnTheHub(hub, repo_id, model, layout)
    run.trained(100, 200)
    before = kept(look(run.repo))
    run.push(200, {"README.md": b"# a run"})
    found = look(run.repo, before)
    assert (steps(found), bool(found)) == (([], [], [], []), False)
    moved = {"branches": [200], "subfolders": [100, 200]}[layout]  # all are read at the branch's new head
    assert [one.now.step for one in found.recommitted] == moved
    assert found.recommitted[-1].now.commit != before[200].commit
    assert steps(look(run.repo, kept(found))) == ([], [], [], [])
    assert not look(run.repo, kept(found)).recommitted


@pytest.mark.parametrize("layout", ["branches", "subfolders"])
def test_force_pushed(hub: LocalHub, repo_id: str, model: Model, layout: str) -> None:
    run = OnTheHub(hub, repo_id, model, layout)
    run.trained(100, 200, 300)
    before = kept(look(run.repo))
    run.push(200, model(7))
    found = look(run.repo, before)
    assert steps(found) == ([], [200], [], [])
    assert found
    (line,) = found.lines()
    now = find_trajectory(run.repo).checkpoints[1]
    assert line == (
        f"step 200 was replaced: {now.name} ({(before[200].commit or '')[:8]}) is {now.name} "
        f"({(now.commit or '')[:8]}) now, with other weights"
    )


def test_a_history_that_was_written_anew(hub: LocalHub, repo_id: str, model: Model) -> None:
    run = OnTheHub(hub, repo_id, model, "commits")
    run.trained(100, 200, 300)
    before = kept(look(run.repo))
    head = hub.store.get("model", repo_id)
    first = next(one for one in head.history(head.head("main")) if one.message.endswith("step 100"))
    head.git.references["refs/heads/main"].set_target(first.id)  # what a push by force does
    run.push(200, model(7))
    found = look(run.repo, before)
    assert steps(found) == ([], [200], [300], [])
    assert found.lines()[1] == f"step 300 is gone: {before[300].name} ({(before[300].commit or '')[:8]})"


def test_deleted(hub: LocalHub, repo_id: str, model: Model) -> None:
    run = OnTheHub(hub, repo_id, model, "branches")
    run.trained(100, 200, 300)
    before = kept(look(run.repo))
    hub.store.get("model", repo_id).delete_ref("refs/heads/step_100")
    assert steps(look(run.repo, before)) == ([], [], [100], [])


@pytest.mark.parametrize("layout", ["branches", "subfolders"])
def test_half_pushed_ones_are_waited_for_in_their_order(
    hub: LocalHub, repo_id: str, model: Model, layout: str
) -> None:
    """An upload in several commits, and a later checkpoint that is there before it is through."""
    run = OnTheHub(hub, repo_id, model, layout)
    run.trained(100, 200)
    before = kept(look(run.repo))
    weights = model(3)["model.safetensors"]
    index = json.dumps({"metadata": {}, "weight_map": {"weight": "model-00002-of-00002.safetensors"}})
    run.push(300, {"config.json": b"{}"})
    assert steps(look(run.repo, before)) == ([], [], [], [300])
    run.push(300, {"model.safetensors.index.json": index.encode()})
    run.push(300, {"model-00001-of-00002.safetensors": weights})
    found = look(run.repo, before)
    assert (steps(found), bool(found)) == (([], [], [], [300]), False)
    assert found.lines()[0].startswith("step 300 is not whole yet and is waited for: ")
    assert found.lines()[0].endswith("model-00002-of-00002.safetensors is not there, and other shards are")
    run.trained(400)
    found = look(run.repo, before)
    assert steps(found) == ([400], [], [], [300])
    assert found.ready == ()
    assert not [line for line in found.lines() if "is new" in line]  # told once, when it is its turn
    run.push(300, {"model-00002-of-00002.safetensors": weights, "tokenizer.json": b"{}"})
    found = look(run.repo, before)
    assert [one.step for one in found.ready] == [300, 400]


def test_what_follows_the_weights_is_waited_for_at_the_end_alone(
    hub: LocalHub, repo_id: str, model: Model
) -> None:
    run = OnTheHub(hub, repo_id, model, "branches")
    run.trained(100, 200)
    before = kept(look(run.repo))
    run.push(300, {name: data for name, data in model(3).items() if name != "tokenizer.json"})
    found = look(run.repo, before)
    assert steps(found) == ([], [], [], [300])
    assert found.lines()[0].endswith("has no tokenizer.json yet, which the checkpoint before it has")
    run.trained(400)
    assert steps(look(run.repo, before)) == ([300, 400], [], [], [])


def test_a_place_without_weights_that_others_overtook(hub: LocalHub, repo_id: str, model: Model) -> None:
    """It holds up nothing; but a checkpoint that is being written anew is not told as deleted."""
    run = OnTheHub(hub, repo_id, model, "branches")
    run.push(150, {"config.json": b"{}"})
    run.trained(100, 200)
    first = look(run.repo)
    assert steps(first) == ([100, 200], [], [], [])
    run.push(100, {"model.safetensors": None})
    assert steps(look(run.repo, kept(first))) == ([], [], [], [100])
    run.push(100, model(5))
    assert steps(look(run.repo, kept(first))) == ([], [100], [], [])


def test_predictions_are_none_of_it(hub: LocalHub, repo_id: str, model: Model) -> None:
    run = OnTheHub(hub, repo_id, model, "branches")
    run.trained(100, 200)
    run.push(300, model(3) | {"hubextrap.json": b"{}"})
    assert steps(look(run.repo)) == ([100, 200], [], [], [])


def test_bounds(run: OnTheHub) -> None:
    run.trained(100, 200, 300)
    assert steps(look(run.repo, max_step=200)) == ([100, 200], [], [], [])


def test_an_adapter_that_is_scaled_otherwise_is_another(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)

    def push(step: int, alpha: int) -> None:
        files = {"adapter_model.safetensors": b"%d" % step, "adapter_config.json": b'{"alpha": %d}' % alpha}
        hub.commit(repo_id, files, revision=f"step_{step}")

    push(100, 8)
    push(200, 8)
    first = look(repo_id)
    assert steps(first) == ([0, 100, 200], [], [], [])  # from the base model on
    push(100, 16)
    assert steps(look(repo_id, kept(first))) == ([], [100], [], [])


@pytest.fixture
def folder(tmp_path: Path, model: Model) -> Path:
    for step in (100, 200):
        write(tmp_path / "run" / f"step_{step}", model(step))
    return tmp_path / "run"


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_in_a_folder(folder: Path, model: Model) -> None:
    first = look(str(folder))
    assert steps(first) == ([100, 200], [], [], [])
    write(folder / "step_200", {"README.md": b"# a run"})
    assert not look(str(folder), kept(first))
    write(folder / "step_300", model(3))
    write(folder / "step_200", {"model.safetensors": model(9)["model.safetensors"]})
    shutil.rmtree(folder / "step_100")
    found = look(str(folder), kept(first))
    assert steps(found) == ([300], [200], [100], [])
    assert found.lines() == (
        f"step 200 was replaced: {folder}/step_200: its weights were written to",
        f"step 100 is gone: {folder}/step_100",
        f"step 300 is new: {folder}/step_300",
    )


def test_a_trainer_is_writing_in_a_folder(folder: Path, model: Model) -> None:
    before = kept(look(str(folder)))
    whole = model(3)
    (folder / "step_300").mkdir()
    assert steps(look(str(folder), before)) == ([], [], [], [])  # nothing is in it
    write(folder / "step_300", {"config.json": b"{}"})
    assert steps(look(str(folder), before)) == ([], [], [], [300])
    for size in (0, 4, 60, len(whole["model.safetensors"]) - 1):
        write(folder / "step_300", {"model.safetensors": whole["model.safetensors"][:size]})
        assert steps(look(str(folder), before)) == ([], [], [], [300]), size
    write(folder / "step_300", {"model.safetensors": whole["model.safetensors"]})
    assert steps(look(str(folder), before)) == ([], [], [], [300])  # the tokenizer follows
    write(folder / "step_300", whole)
    assert steps(look(str(folder), before)) == ([300], [], [], [])


def test_a_rewritten_one_in_the_middle_is_waited_for(folder: Path, model: Model) -> None:
    before = kept(look(str(folder)))
    write(folder / "step_300", model(3))
    os.truncate(folder / "step_100" / "model.safetensors", 100)
    found = look(str(folder), before)
    assert steps(found) == ([300], [], [], [100])
    assert found.ready == ()


def test_one_that_two_later_ones_overtook_is_given_up(folder: Path, model: Model) -> None:
    before = kept(look(str(folder)))
    for step in (300, 400, 500):
        write(folder / f"step_{step}", model(step))
    os.truncate(folder / "step_100" / "model.safetensors", 100)  # it was whole before
    os.truncate(folder / "step_300" / "model.safetensors", 100)
    found = look(str(folder), before)
    assert steps(found) == ([400, 500], [], [100], [])
    assert [over.checkpoint.step for over in found.given_up] == [100, 300]
    assert "step 300 is not whole, and 2 later ones are: it is left out until it is" in found.lines()[-1]
    without = {step: one for step, one in kept(found).items() if step not in (100, 300)}
    assert steps(look(str(folder), without)) == ([], [], [], [])  # nor is it waited for later
    write(folder / "step_300", model(300))
    assert steps(look(str(folder), without)) == ([300], [], [], [])


@pytest.mark.parametrize(
    "change",
    [lambda it: it.pop("step"), lambda it: it.update(more=1), lambda it: it.update(step="1")],
)
def test_a_state_of_something_else_is_refused(
    folder: Path, change: Callable[[dict[str, object]], object]
) -> None:
    value = next(iter(look(str(folder)).now.values())).as_json()
    assert SeenCheckpoint.from_json(value) == replace(SeenCheckpoint.from_json(value))
    change(value)
    with pytest.raises(ValueError, match="is not"):
        SeenCheckpoint.from_json(value)
    with pytest.raises(ValueError, match="is not"):
        SeenCheckpoint.from_json([value])


def test_requests(hub: LocalHub, repo_id: str, model: Model) -> None:
    """What is known costs none but those of finding the run; what is new one, and one for its neighbour."""
    run = OnTheHub(hub, repo_id, model, "branches")
    run.trained(100, 200, 300)
    before = kept(look(repo_id))

    def requests(before: Seen) -> int:
        pins = Pins()
        trajectory = find_trajectory(repo_id, pins=pins)
        hub.requests.clear()
        changes_since(before, trajectory, pins)
        return len(hub.requests)

    assert requests(before) == 0
    run.trained(400)
    assert requests(before) == 2
