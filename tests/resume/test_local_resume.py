"""A merge into a folder that was stopped, and what the same command then does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from harness import SHARDS, Lines

import hubextrap
from hubextrap.errors import NonFinite, OutputError, PushError, SourceError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.progress import SilentProgress
from hubextrap.tensors import Patience

BEFORE_FULL = 6
Contents = Callable[[Path], dict[str, bytes]]
Recipe = Callable[..., Path]
FullDisk = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def expected(run_folder: Path, recipe_file: Recipe, contents: Contents, tmp_path: Path) -> dict[str, bytes]:
    """The output of a run that nobody stopped."""
    out = tmp_path / "unstopped"
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder)), out=out)
    return contents(out)


@pytest.fixture
def stopped(run_folder: Path, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path) -> Path:
    """Where an output would be, had the disk not been full after the first half of it."""
    out = tmp_path / "out"
    with full_disk(), pytest.raises(OutputError, match=r"model-00007-of-.*: no room: 164,056 bytes"):
        hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder)), out=out)
    assert not out.exists()
    return out


def staging(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def shards_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def resume(recipe: Path, out: Path, lines: Lines) -> hubextrap.Prediction:
    result = hubextrap.merge(hubextrap.load_recipe(recipe), out=out, progress=lines)  # type: ignore[arg-type]
    assert not staging(out).exists()
    return result.predictions[0]


def test_a_kill_after_the_chat_templates(
    stopped: Path,
    run_folder: Path,
    recipe_file: Recipe,
    expected: dict[str, bytes],
    contents: Contents,
    lines: Lines,
) -> None:
    """They lie in a folder of their own; what a killed run left of it is written anew."""
    templates = staging(stopped) / "model" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("of the run that was killed")
    resume(recipe_file(run_folder), stopped, lines)
    assert contents(stopped) == expected
    assert not (stopped / "additional_chat_templates").exists()


def test_after_a_full_disk(
    stopped: Path,
    run_folder: Path,
    recipe_file: Recipe,
    expected: dict[str, bytes],
    contents: Contents,
    lines: Lines,
) -> None:
    model = staging(stopped) / "model"
    kept = {name: (model / name).stat().st_mtime_ns for name in shards_in(model)}
    assert len(kept) == BEFORE_FULL
    assert not list(model.glob(".*"))  # what was not finished is gone
    resume(recipe_file(run_folder), stopped, lines)
    assert lines.said == [f"resuming: {BEFORE_FULL} of {SHARDS} shards are there"]
    assert contents(stopped) == expected
    for name, modified in kept.items():
        assert (stopped / name).stat().st_mtime_ns == modified  # taken over, not made again


def test_it_says_that_shards_are_kept(
    run_folder: Path, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path, lines: Lines
) -> None:
    out = tmp_path / "out"
    with full_disk(), pytest.raises(OutputError):
        resume(recipe_file(run_folder), out, lines)
    assert lines.said == [f"{out}: 6 finished shards kept; run the same command again to go on"]


def test_a_shard_that_was_changed_is_made_again(
    stopped: Path,
    run_folder: Path,
    recipe_file: Recipe,
    expected: dict[str, bytes],
    contents: Contents,
    lines: Lines,
) -> None:
    flipped, shorter, gone = (
        staging(stopped) / "model" / name for name in shards_in(stopped.parent / "unstopped")[1:4]
    )
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    shorter.write_bytes(shorter.read_bytes()[:-1])
    gone.unlink()
    (staging(stopped) / "model" / "left-by-somebody.safetensors").write_bytes(b"x")
    resume(recipe_file(run_folder), stopped, lines)
    assert lines.said == [
        f"{flipped.name}: has other bytes than were written; it is made again",
        f"{shorter.name}: has other bytes than were written; it is made again",
        f"{gone.name}: is gone; it is made again",
        f"resuming: {BEFORE_FULL - 3} of {SHARDS} shards are there",
    ]
    assert contents(stopped) == expected


def test_a_changed_recipe_starts_over(
    stopped: Path, run_folder: Path, recipe_file: Recipe, contents: Contents, tmp_path: Path, lines: Lines
) -> None:
    recipe = recipe_file(run_folder, target_step=30)
    resume(recipe, stopped, lines)
    changed = "the recipe and the coefficients changed since the run that was stopped"
    assert lines.said == [f"{stopped}: starting over, as {changed}"]
    hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "fresh")
    assert contents(stopped) == contents(tmp_path / "fresh")


def test_more_targets_and_fewer_leave_nothing_of_each_other(
    run_folder: Path, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / "out"
    for targets in ([20, 30], 20, [20, 30]):
        with full_disk(), pytest.raises(OutputError):
            hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder, targets)), out=out)
    hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder, [20, 30])), out=out)
    assert sorted(path.name for path in out.iterdir()) == ["step_20", "step_30"]
    for step in (20, 30):
        alone = tmp_path / f"alone-{step}"
        hubextrap.merge(hubextrap.load_recipe(recipe_file(run_folder, step)), out=alone)
        weights = {name: content for name, content in contents(alone).items() if "safetensors" in name}
        assert weights.items() <= contents(out / f"step_{step}").items()


def test_whether_it_is_the_last_checkpoint_is_known_after_a_resume(
    run_folder: Path, recipe_file: Recipe, full_disk: FullDisk, tmp_path: Path, lines: Lines
) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    for path in sorted((run / "step_10").glob("*.safetensors"))[1:]:
        shutil.copy(path, run / "step_0")  # only the first shard moves, and it is made before the stop
    for method, same in (("persistence", True), ("two_point", False)):
        recipe, out = recipe_file(run, method=method), tmp_path / method
        with full_disk(), pytest.raises(OutputError):
            hubextrap.merge(hubextrap.load_recipe(recipe), out=out)
        assert resume(recipe, out, lines).identical_to_last == same


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(attempts=2, first_wait=0.01)
    monkeypatch.setattr("hubextrap.tensors.remote.Patience", lambda: patience)


@pytest.mark.usefixtures("impatient")
def test_after_a_lost_network(
    hub: LocalHub,
    run_on_hub: str,
    recipe_file: Recipe,
    contents: Contents,
    expected: dict[str, bytes],
    tmp_path: Path,
    lines: Lines,
) -> None:
    out = tmp_path / "out"
    # Each file is asked for twice: its header, then its tensors, and those of the sixth never come.
    hub.faults.add(Fault(r"/resolve/.*model-00006", "GET", count=2))
    hub.faults.add(Fault(r"/resolve/.*model-00006", "GET", drop=True, count=1000))
    with pytest.raises(SourceError, match="could not be read in 2 attempts"):
        hubextrap.merge(hubextrap.load_recipe(recipe_file(run_on_hub)), out=out)
    kept = shards_in(staging(out) / "model")
    assert len(kept) in (4, 5)
    hub.faults.clear()
    hub.requests.clear()
    resume(recipe_file(run_on_hub), out, lines)
    assert lines.said == [f"resuming: {len(kept)} of {SHARDS} shards are there"]
    weights = {name: content for name, content in expected.items() if "safetensors" in name}
    assert weights.items() <= contents(out).items()
    heads = [r for r in hub.requests if r.method == "GET" and "model-00002" in r.path and "resolve" in r.path]
    assert len(heads) == 2  # the headers: no tensor of a finished shard is read again


def poisoned(run_folder: Path, tmp_path: Path) -> Path:
    """The run with a NaN in the last shard."""
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    with (run / "step_10" / f"model-{SHARDS:05}-of-{SHARDS:05}.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xc0\x7f")
    return run


def test_a_checkpoint_that_is_wrong_leaves_nothing(
    run_folder: Path, recipe_file: Recipe, tmp_path: Path
) -> None:
    run = poisoned(run_folder, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NonFinite, match="1 of 40,960 results are NaN or infinite"):
        hubextrap.merge(hubextrap.load_recipe(recipe_file(run)), out=tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "recipe.yaml"])


def test_an_error_before_the_first_shard_leaves_nothing(
    run_folder: Path, recipe_file: Recipe, tmp_path: Path
) -> None:
    recipe = recipe_file(run_folder)
    (tmp_path / ".out.partial").write_text("in the way")
    with pytest.raises(OutputError, match=r"\.partial: cannot .* File exists"):
        hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out")
    (tmp_path / ".out.partial").unlink()
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="is there already and is no folder"):
        hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yaml"]


def test_a_link_is_told_from_a_file(run_folder: Path, recipe_file: Recipe, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder")
    recipe = hubextrap.load_recipe(recipe_file(run_folder))
    with pytest.raises(OutputError, match="link: is a link"):
        hubextrap.merge(recipe, out=link)
    hubextrap.merge(recipe, out=link.resolve())
    assert (link / "hubextrap.json").is_file()


def test_what_a_kill_after_the_rename_leaves_is_removed(
    stopped: Path, run_folder: Path, recipe_file: Recipe, lines: Lines
) -> None:
    (staging(stopped) / "model").rename(stopped)
    with pytest.raises(OutputError, match="is there already and not empty; remove it"):
        resume(recipe_file(run_folder), stopped, lines)
    assert not staging(stopped).exists()
    assert len(shards_in(stopped)) == BEFORE_FULL


def test_somebody_takes_the_place_meanwhile(
    stopped: Path, run_folder: Path, recipe_file: Recipe, expected: dict[str, bytes], contents: Contents
) -> None:
    class Busybody(SilentProgress):
        def say(self, line: str) -> None:
            stopped.mkdir(exist_ok=True)
            (stopped / "mine").touch()

    recipe = hubextrap.load_recipe(recipe_file(run_folder))
    with pytest.raises(OutputError, match="somebody else wrote there: move that away"):
        hubextrap.merge(recipe, out=stopped, progress=Busybody())
    (stopped / "mine").unlink()
    hubextrap.merge(recipe, out=stopped)
    assert contents(stopped) == expected


def test_room_is_counted_with_what_is_there(
    stopped: Path, run_folder: Path, recipe_file: Recipe, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    usage = shutil.disk_usage(stopped.parent)
    recipe = recipe_file(run_folder)  # 1,772,080 bytes of shards and some files; 787,296 of them are there
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000))
    with pytest.raises(OutputError, match=r"1,8[\d,]+ bytes .* 1,7[\d,]+ are free"):
        resume(recipe, stopped, lines)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_100_000))
    resume(recipe, stopped, lines)


@pytest.mark.usefixtures("impatient")
def test_a_card_that_cannot_be_read_is_not_left_out(
    hub: LocalHub, run_on_hub: str, recipe_file: Recipe, tmp_path: Path, lines: Lines
) -> None:
    hub.commit(run_on_hub, {"README.md": b"---\nlicense: mit\n---\n"}, revision="step_10")
    hub.faults.add(Fault(r"/resolve/.*README.md", "GET", status=503, count=2))
    recipe = recipe_file(run_on_hub)
    with pytest.raises(SourceError, match=r"@step_10/README.md: "):
        hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out")
    assert not staging(tmp_path / "out").exists()  # nothing was read for it
    resume(recipe, tmp_path / "out", lines)
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("logged_in")
def test_a_push_that_fails_leaves_the_folder_and_says_how_to_go_on(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, repo_id: str, tmp_path: Path
) -> None:
    target = hubextrap.PushTarget.parse(f"{repo_id}@step_20", private=True)
    hub.faults.add(Fault(r"^/lfs/", "PUT", status=403, count=1000))
    out = tmp_path / "out"
    recipe = hubextrap.load_recipe(recipe_file(run_folder))
    with pytest.raises(PushError) as caught:
        hubextrap.merge(recipe, out=out, push=[target])
    command = f"hubextrap push {out} {repo_id}@step_20 --private"
    assert str(caught.value).endswith(f"\n{out} is whole; `{command}` pushes it")
    hub.faults.clear()
    assert not hubextrap.verify(out).problems
    hubextrap.push(out, target)
    assert not hubextrap.verify(target.name).problems
