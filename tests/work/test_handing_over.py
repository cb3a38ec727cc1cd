"""submit, worker, finish: the output is the local command's, whoever makes the shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from hubextrap import api
from hubextrap.errors import CheckpointError, HubExtrapError, OutputError, PushError, SourceError
from hubextrap.executors.watching import Submitted
from hubextrap.localhub import LocalHub
from hubextrap.work.kinds import PLAN_FILE
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Records

SHARDS = 3


class ByHand:
    """A queue of people: `hubextrap worker` is typed by somebody."""

    def place(self, plan: WorkPlan, local: FolderPlace) -> Place:
        return local

    def submit(self, plan: WorkPlan, place: Place, units: Sequence[int]) -> Submitted:
        return Submitted((), "true", "true")

    def dry_run(self, plan: WorkPlan, place: Place, units: Sequence[int]) -> str:
        return f"units {list(units)} of {place.name}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_by_many_workers_is_the_local_one(recipe: Path, tmp_path: Path) -> None:
    api.merge(recipe, out=tmp_path / "local")
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    assert submitted.units == SHARDS
    for unit in (2, 0, 0):
        api.worker(submitted.place, [unit])
    with pytest.raises(OutputError, match=r"1 of 3 shards are not made yet .*hubextrap worker"):
        api.finish(submitted.place)
    assert not (tmp_path / "out").exists()
    assert api.worker(submitted.place) == [(1, "model-00002-of-00003.safetensors")]
    result = api.finish(submitted.place)
    assert result is not None
    assert [one.step for one in result.predictions] == [30, 40]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(HubExtrapError, match=r"holds no plan\.json"):
        api.finish(submitted.place)
    assert api.finish(submitted.place, if_last=True) is None


def test_the_last_worker_does_the_last_step(recipe: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    for unit in range(SHARDS):
        assert not (tmp_path / "out").exists()
        api.worker(submitted.place, [unit], finish_if_last=True)
    assert (tmp_path / "out" / "step_40" / "hubextrap.json").is_file()
    assert api.worker(submitted.place, [0], finish_if_last=True) == []


def test_a_dry_run_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = files_of(tmp_path)
    dry = api.submit(recipe, ByHand(), out=tmp_path / "out", dry_run=True)
    assert dry.script == f"units [0, 1, 2] of {tmp_path / '.out.partial' / 'work'}"
    assert files_of(tmp_path) == before


def test_a_checkpoint_that_was_written_to_since(recipe: Path, run: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    api.worker(submitted.place, [0])
    file = run / "step_20" / "model-00002-of-00003.safetensors"
    os.utime(file, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since the plan was made") as told:
        api.worker(submitted.place, [1])
    assert (told.value.file, told.value.step) == (file.name, 20)
    with pytest.raises(SourceError, match="changed since the plan was made"):  # it is on record
        api.finish(submitted.place)


def test_a_merge_stands_back_while_others_work(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubextrap.executors.submission import Submission

    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    place = FolderPlace(Path(submitted.place))
    Submission("slurm", {"options": [], "tasks": None}, "x", {"7": (0, 1)}, "8").save(place)
    with pytest.raises(OutputError, match=r"submitted to slurm; `hubextrap finish .* --wait`.*scancel"):
        api.merge(recipe, out=tmp_path / "out")
    Path(submitted.place, "submitted.json").unlink()
    api.worker(submitted.place, [0, 1])
    made = tmp_path / ".out.partial" / "model" / "step_30" / "model-00001-of-00003.safetensors"
    inode = made.stat().st_ino
    api.merge(recipe, out=tmp_path / "out")  # goes on from what the workers have made
    final = tmp_path / "out" / "step_30" / made.name
    assert final.stat().st_ino == inode


def test_submitted_again_it_goes_on(recipe: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    api.worker(submitted.place, [1])
    again = api.submit(recipe, ByHand(), out=tmp_path / "out")
    assert again.units == SHARDS - 1
    shutil.rmtree(tmp_path / ".out.partial" / "model" / "step_40")  # a record of what is gone is none
    assert api.submit(recipe, ByHand(), out=tmp_path / "out").units == SHARDS


def test_a_push_is_one_commit_of_the_local_bytes(
    hub_recipe: tuple[Path, str], hub: LocalHub, tmp_path: Path
) -> None:
    recipe, repo = hub_recipe
    local = api.merge(recipe, push=f"{repo}@local").predictions[0]
    submitted = api.submit(recipe, ByHand(), push=f"{repo}@apart")
    plan = WorkPlan.load(FolderPlace(Path(submitted.place)))
    base = "model-00001-of-00001.safetensors"
    assert plan.labels[SHARDS:] == (f"{base} of step 0",), "read by every shard, compared at the end"
    for unit in reversed(range(SHARDS)):
        api.worker(submitted.place, [unit])
    result = api.finish(submitted.place)
    assert result is not None
    apart = result.predictions[0]
    assert apart.pushed is not None
    assert local.pushed is not None
    files = [
        {one["path"]: one.get("lfs", one)["oid"] for one in hub_tree(hub, repo, commit)}
        for commit in (local.pushed.commit, apart.pushed.commit)
    ]
    differing = {path for path in files[0] if files[0][path] != files[1].get(path)}
    assert files[0].keys() == files[1].keys()
    assert differing <= {"README.md"}, "the card names its branch"
    assert not Path(submitted.place).exists()


def hub_tree(hub: LocalHub, repo: str, commit: str) -> list[dict[str, object]]:
    import urllib.request

    with urllib.request.urlopen(f"{hub.url}/api/models/{repo}/tree/{commit}?recursive=1") as answer:
        found = json.load(answer)
    return [one for one in found if one["type"] == "file"]


def test_a_file_that_is_not_what_the_hub_lists(
    hub_recipe: tuple[Path, str], hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker reads the base as a whole; the last step does, and refuses."""
    from hubextrap.engine import inputs

    recipe, repo = hub_recipe
    submitted = api.submit(recipe, ByHand(), push=repo)
    api.worker(submitted.place)
    real = inputs.hasher_like

    def lying(digest: str, size: int) -> object:
        hasher = real(digest, size)
        hasher.update(b"as if other bytes had come")
        return hasher

    monkeypatch.setattr(inputs, "hasher_like", lying)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors"):
        api.finish(submitted.place)


def test_who_pushed_meanwhile_is_not_overwritten(hub_recipe: tuple[Path, str], hub: LocalHub) -> None:
    recipe, repo = hub_recipe
    submitted = api.submit(recipe, ByHand(), push=repo)
    api.worker(submitted.place)
    hub.commit(repo, {"model.safetensors": b"x" * 10})
    with pytest.raises(PushError, match=r"somebody else changed model\.safetensors in the meantime"):
        api.finish(submitted.place)


def test_records_of_another_plan_and_broken_ones_count_as_none(recipe: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    place = FolderPlace(Path(submitted.place))
    plan = WorkPlan.load(place)
    api.worker(submitted.place, [0])
    data = place.read("done/0.json")
    assert data is not None
    place.write("done/1.json", data)
    assert Records(place, plan.digest).get(1) is None
    assert Records(place, "0" * 64).get(0) is None
    place.write("done/0.json", data[:-20])
    assert Records(place, plan.digest).get(0) is None


def test_a_plan_of_other_versions_is_refused(recipe: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, ByHand(), out=tmp_path / "out")
    path = Path(submitted.place, PLAN_FILE)
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(CheckpointError, match="is no plan of this version of hubextrap"):
        api.worker(submitted.place)
    plan = WorkPlan.from_bytes(text, "plan")
    from dataclasses import replace

    old = replace(plan, versions={**plan.versions, "numba": "0.1"})
    path.write_bytes(old.to_bytes())
    with pytest.raises(OutputError, match=r"made with numba 0\.1.*install numba==0\.1"):
        api.worker(submitted.place)


def test_no_secret_is_in_a_plan(hub_recipe: tuple[Path, str], hub: LocalHub) -> None:
    recipe, repo = hub_recipe
    submitted = api.submit(recipe, ByHand(), push=repo)
    api.worker(submitted.place, [0])
    held = files_of(Path(submitted.place))
    assert held
    assert not [name for name, data in held.items() if b"testtoken" in data]
