"""What is in a place and not as it was written counts as none, or is refused; and names that are odd."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hubextrap import api
from hubextrap.api.beside import read_beside, write_beside
from hubextrap.api.companions import Companions
from hubextrap.api.staging import Staging, staged
from hubextrap.claims import sealed
from hubextrap.errors import OutputError, ReferenceNotFound, SourceError
from hubextrap.executors.local import LocalExecutor
from hubextrap.executors.slurm import SlurmExecutor
from hubextrap.executors.submission import SUBMITTED, Submission
from hubextrap.executors.watching import Submitted
from hubextrap.hub import PROVENANCE_FILE
from hubextrap.hub.provenance_checks import read_provenance
from hubextrap.progress import Progress
from hubextrap.work.kinds import Work
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.plan import WorkPlan
from hubextrap.work.records import Record

UNIT = 1
SHARD = "model-00002-of-00003.safetensors"


class Waiting(SlurmExecutor):
    """A queue of jobs that wait for ever."""

    interval, settle = 0.01, 0.0

    def start(self, plan: Work, place: Place, units: Sequence[int]) -> dict[str, tuple[int, ...]]:
        return {"7_0": tuple(units)}

    def start_last(self, plan: Work, place: Place, after: Collection[str]) -> str:
        return "8"

    def alive(self, jobs: Collection[str]) -> frozenset[str]:
        return frozenset(jobs)


class Nobody(Waiting):
    """All jobs have left the queue."""

    def submit(self, plan: Work, place: Place, units: Sequence[int]) -> Submitted:
        return Submitted((), "true", "true")


@pytest.fixture
def place(recipe: Path, tmp_path: Path) -> FolderPlace:
    """All shards are made, and the last step is not done."""
    submitted = api.submit(recipe, Nobody(), out=tmp_path / "out")
    api.worker(submitted.place)
    return FolderPlace(Path(submitted.place))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shards",
    [
        None,
        "x",
        [],
        [None, None],
        [{"file": "../../x", "size": 3, "sha256": "0" * 64, "identical": False, "small": None}] * 2,
        [{"file": SHARD, "sha256": "0" * 64, "identical": False, "small": None}] * 2,
        [{"file": SHARD, "size": 1056, "sha256": None, "identical": False, "small": None}] * 2,
    ],
)
def test_a_record_of_something_else_counts_as_none(
    place: FolderPlace, shards: object, tmp_path: Path
) -> None:
    name = f"done/{UNIT}.json"
    stated = json.loads(place.read(name) or b"")
    stated["content"]["shards"] = shards
    del stated["digest"]
    place.write(name, json.dumps(sealed(stated)).encode())
    with pytest.raises(OutputError, match=rf"1 of 3 shards are not made yet \({SHARD}\)"):
        api.finish(place.name)
    assert api.worker(place.name) == [(UNIT, SHARD)]
    assert api.finish(place.name) is not None


@pytest.mark.slow
def test_a_file_beside_the_shards_that_is_not_as_it_was_written(place: FolderPlace, tmp_path: Path) -> None:
    cards = [place.folder / "beside" / number / "README.md" for number in ("0", "1")]
    contents = [card.read_bytes() for card in cards]
    for odd in (contents[0][:-1], contents[1], b""):  # cut, the other target's, empty
        cards[0].write_bytes(odd)
        with pytest.raises(OutputError, match=r"beside/0/README\.md is gone or not as it was written"):
            api.finish(place.name)
        assert not (tmp_path / "out").exists()
    recipe = tmp_path / "recipe.yaml"
    assert api.submit(recipe, Nobody(), out=tmp_path / "out").units == 0
    assert api.finish(place.name) is not None
    api.merge(recipe, out=tmp_path / "local")
    for path in (tmp_path / "local").rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_no_file_beside_the_shards_leaves_the_output(place: FolderPlace) -> None:
    plan = WorkPlan.load(place)
    files = {file: (place.folder / "beside" / "0" / file).read_bytes() for file in plan.finish["beside"][0]}
    made = {file: content.partition(b"\n")[2] for file, content in files.items()}
    odd = Companions(read_provenance(made[PROVENANCE_FILE], "x"), made | {"../x": b"x"})
    write_beside(place, plan, [odd])
    assert (place.folder / "beside" / "x").is_file()
    with pytest.raises(OutputError, match=r"beside/0/\.\./x is gone or not as it was written"):
        read_beside(place, plan, 0, sorted(odd.files))


@pytest.mark.slow
def test_jobs_of_another_recipe_are_not_left_to_write_there(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubextrap.api.recorded.queue_of", lambda others: Waiting())
    submitted = api.submit(recipe, Waiting(), out=tmp_path / "out")
    api.worker(submitted.place, [0])
    assert api.submit(recipe, Waiting(), out=tmp_path / "out").queued is not None, "its own jobs go on"
    before = sorted(tmp_path.rglob("*"))
    recipe.write_text(recipe.read_text().replace("[30, 40]", "[35, 40]"))
    with pytest.raises(OutputError, match=r"still work there; `scancel 7 8` ends them, then submit again"):
        api.submit(recipe, Waiting(), out=tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr("hubextrap.api.recorded.queue_of", lambda others: Gone())
    assert api.submit(recipe, Waiting(), out=tmp_path / "out").units == 3


class Gone(Waiting):
    def alive(self, jobs: Collection[str]) -> frozenset[str]:
        return frozenset()


@pytest.mark.slow
def test_whoever_is_late_finds_all_done(place: FolderPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = place.folder.parent.with_name("kept")
    shutil.copytree(place.folder.parent, kept)

    class Late(LocalExecutor):
        def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
            api.finish(place.name)  # another process's, meanwhile
            yield from super().run(plan, place, units, progress)

    monkeypatch.setattr("hubextrap.api.working.LocalExecutor", Late)
    with pytest.raises(ReferenceNotFound, match="the last step was done meanwhile"):
        api.worker(place.name, [0])
    shutil.rmtree(kept.with_name("out"))
    kept.rename(place.folder.parent)
    assert api.worker(place.name, [0], finish_if_last=True) == []


@pytest.mark.slow
def test_no_folder_without_its_shards_gets_the_name(
    place: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the records and the lock, somebody takes a shard away."""

    @contextmanager
    def late(*arguments: Any, **more: Any) -> Iterator[Staging]:
        (place.folder.parent / "model" / "step_40" / SHARD).unlink()
        with staged(*arguments, **more) as staging:
            yield staging

    monkeypatch.setattr("hubextrap.api.finishing.staged", late)
    with pytest.raises(OutputError, match=rf"{SHARD} was taken away meanwhile"):
        api.finish(place.name)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert api.worker(place.name) == [(UNIT, SHARD)]
    assert api.finish(place.name) is not None


def test_what_is_no_file_is_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    os.mkfifo(tmp_path / "done" / "0.json")
    (tmp_path / "done" / "1.json").mkdir()
    for name in ("done/0.json", "done/1.json"):
        with pytest.raises(SourceError, match=r"cannot be read: .*; remove it$"):
            FolderPlace(tmp_path).read(name)


@pytest.mark.slow
def test_a_command_that_is_told_works_in_a_shell(recipe: Path, tmp_path: Path) -> None:
    submitted = api.submit(recipe, Nobody(), out=tmp_path / "a $(b) 'c'")
    said = "'" + submitted.place.replace("'", "'\"'\"'") + "'"
    with pytest.raises(OutputError) as told:
        api.finish(submitted.place)
    assert f"`hubextrap worker {said}`" in str(told.value)
    Submission("slurm", {"options": [], "tasks": None}, "x", {"7": (0,)}, "8").save(
        FolderPlace(Path(submitted.place))
    )
    with pytest.raises(OutputError) as told:
        api.merge(recipe, out=tmp_path / "a $(b) 'c'")
    assert f"`hubextrap finish {said} --wait`" in str(told.value)
    assert f"`rm {said[:-1]}/{SUBMITTED}'`" in str(told.value)


@pytest.mark.slow
def test_a_name_that_is_no_utf_8_is_named(recipe: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff"))
    with pytest.raises(OutputError, match=r"a name that is not UTF-8, at .*a\\udcff"):
        api.submit(recipe, Nobody(), out=odd)
    shutil.rmtree(odd.with_name(f".{odd.name}.partial"), ignore_errors=True)
