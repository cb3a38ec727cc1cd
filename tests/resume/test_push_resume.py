"""A push without a local output that was stopped, and what the same command then does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import SHARDS, Lines
from huggingface_hub import HfApi

import hubextrap
from hubextrap.api.staging import push_place
from hubextrap.errors import OutputError, PushError
from hubextrap.localhub import Fault, LocalHub

Recipe = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture
def target(repo_id: str) -> hubextrap.PushTarget:
    return hubextrap.PushTarget.parse(f"{repo_id}@step_20")


def merge(recipe: Path, *targets: hubextrap.PushTarget, lines: Lines | None = None) -> list[object]:
    loaded = hubextrap.load_recipe(recipe)
    result = hubextrap.merge(loaded, push=targets, progress=lines)  # type: ignore[arg-type]
    for target in targets:
        assert not push_place(target).exists()
        assert not hubextrap.verify(target.name).problems
    return [prediction.pushed for prediction in result.predictions]


def stop(hub: LocalHub, recipe: Path, target: hubextrap.PushTarget, uploads: int, **how: object) -> None:
    """A run whose network is gone after so many uploads."""
    hub.faults.add(Fault(r"^/lfs/", "PUT", count=uploads))
    hub.faults.add(Fault(r"^/lfs/", "PUT", count=10_000, **({"drop": True} | how)))  # type: ignore[arg-type]
    with pytest.raises(PushError, match=r"cannot reach the Hub|the Hub answered"):
        hubextrap.merge(hubextrap.load_recipe(recipe), push=[target])
    hub.faults.clear()
    hub.requests.clear()
    assert target.revision not in {ref.name for ref in HfApi().list_repo_refs(target.repo).branches}


def uploads(hub: LocalHub) -> int:
    return len([r for r in hub.requests if r.method == "PUT" and r.path.startswith("/lfs/")])


def test_after_a_lost_network(
    hub: LocalHub,
    run_folder: Path,
    recipe_file: Recipe,
    target: hubextrap.PushTarget,
    tmp_path: Path,
    lines: Lines,
) -> None:
    recipe = recipe_file(run_folder)
    stop(hub, recipe, target, uploads=5)
    place = push_place(target)
    assert sorted(path.name for path in place.iterdir()) == ["journal-0.jsonl", "lock", "scratch"]
    assert not list((place / "scratch").iterdir())
    merge(recipe, target, lines=lines)
    assert lines.said == [f"resuming: 5 of {SHARDS} shards are there"]
    assert uploads(hub) == SHARDS - 5
    hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "out")
    assert hubextrap.push(tmp_path / "out", target).unchanged


def test_refused_before_any_upload_leaves_nothing(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget
) -> None:
    stop(hub, recipe_file(run_folder), target, uploads=0, drop=False, status=403)
    assert not push_place(target).exists()


def test_the_commit_fails_and_only_it_is_repeated(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget, lines: Lines
) -> None:
    recipe = recipe_file(run_folder)
    hub.faults.add(Fault(r"/commit/step_20", "POST", status=403))
    with pytest.raises(PushError, match="the Hub answered 403"):
        merge(recipe, target)
    hub.requests.clear()
    merge(recipe, target, lines=lines)
    assert lines.said == [f"resuming: {SHARDS} of {SHARDS} shards are there"]
    assert uploads(hub) == 0


def test_what_the_hub_lost_is_made_again(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget, lines: Lines
) -> None:
    recipe = recipe_file(run_folder)
    stop(hub, recipe, target, uploads=5)
    objects = hub.store.get("model", target.repo).objects
    record = (push_place(target) / "journal-0.jsonl").read_text().splitlines()[3]
    objects.path(record.partition('"sha256": "')[2][:64]).unlink()
    merge(recipe, target, lines=lines)
    assert lines.said == [f"resuming: 4 of {SHARDS} shards are there"]
    assert uploads(hub) == SHARDS - 4


def test_the_repo_is_deleted_meanwhile(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget, lines: Lines
) -> None:
    recipe = recipe_file(run_folder)
    stop(hub, recipe, target, uploads=5)
    HfApi().delete_repo(target.repo)
    merge(recipe, target, lines=lines)
    assert lines.said == []
    assert uploads(hub) == SHARDS


def test_a_changed_recipe_starts_over(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget, lines: Lines
) -> None:
    stop(hub, recipe_file(run_folder), target, uploads=5)
    merge(recipe_file(run_folder, target_step=30), target, lines=lines)
    changed = "the recipe and the coefficients changed since the run that was stopped"
    assert lines.said == [f"{target.name}: starting over, as {changed}"]
    assert uploads(hub) == SHARDS


def test_several_targets_of_which_one_is_committed(
    hub: LocalHub, run_folder: Path, recipe_file: Recipe, repo_id: str, lines: Lines
) -> None:
    recipe = recipe_file(run_folder, [20, 30])
    targets = [hubextrap.PushTarget.parse(f"{repo_id}@step_{step}") for step in (20, 30)]
    hub.faults.add(Fault(r"/commit/step_30", "POST", status=403))
    with pytest.raises(PushError, match="the Hub answered 403"):
        merge(recipe, *targets)
    hub.requests.clear()
    first, second = merge(recipe, *targets, lines=lines)
    assert lines.said == [f"resuming: {2 * SHARDS} of {2 * SHARDS} shards are there"]
    assert first.unchanged  # type: ignore[attr-defined]
    assert not second.unchanged  # type: ignore[attr-defined]
    assert uploads(hub) == 0


def test_the_disk_must_hold_two_shards(
    run_folder: Path, recipe_file: Recipe, target: hubextrap.PushTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run_folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    with pytest.raises(OutputError, match=r"328,128 bytes are needed .* HF_HOME"):
        merge(recipe_file(run_folder), target)
    assert not push_place(target).exists()


OVER_XET = """
import os, sys
from pathlib import Path
from hubextrap.localhub import Fault, LocalHub
root, recipe = Path(sys.argv[1]), sys.argv[2]
hub = LocalHub(root / "hub", tokens={"hf_" + "x" * 20: "me"}, xet=True)
with hub:
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_" + "x" * 20, "HF_HOME": str(root / "home")}
    import hubextrap
    from hubextrap.api.staging import push_place
    target = hubextrap.PushTarget.parse("me/x@step_20")
    hub.faults.add(Fault("/commit/step_20", "POST", status=403))
    try:
        hubextrap.merge(hubextrap.load_recipe(recipe), push=[target])
        sys.exit("the commit was to fail")
    except hubextrap.HubExtrapError as error:
        assert "403" in str(error), error
    assert not push_place(target).exists()
    hubextrap.merge(hubextrap.load_recipe(recipe), push=[target])
    assert not hubextrap.verify(target.name).problems
"""


@pytest.mark.slow
def test_over_xet_it_is_made_again(run_folder: Path, recipe_file: Recipe, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-W", "error", "-c", OVER_XET, str(tmp_path), str(recipe_file(run_folder))]
    subprocess.run(command, check=True, env=environment, timeout=60)
