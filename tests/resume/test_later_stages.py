"""What fails after the shards are whole costs none of them: the same command goes on with what is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml
from harness import ROOT, SHARDS, Lines, weights_read

import hubextrap
from hubextrap.api.staging import place_of, push_place
from hubextrap.errors import HubExtrapError, OutputError, PushError
from hubextrap.localhub import Fault, LocalHub

Recipe = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("logged_in")


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """What would be other, had a shard been made again."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*.safetensors"))]
    return {path.name: (status.st_ino, status.st_mtime_ns) for path, status in found}


@pytest.mark.slow
@pytest.mark.parametrize("target_step", [20, [20, 30]])
def test_a_push_of_a_folder(
    hub: LocalHub,
    run_on_hub: str,
    recipe_file: Recipe,
    tmp_path: Path,
    lines: Lines,
    target_step: int | list[int],
) -> None:
    recipe = hubextrap.load_recipe(recipe_file(run_on_hub, target_step=target_step))
    targets = [hubextrap.PushTarget(f"{run_on_hub}-made", f"at_{step}") for step in recipe.target_steps]
    out = tmp_path / "out"
    hub.faults.add(Fault(r"/commit/", "POST", status=403, count=100))
    with pytest.raises(PushError, match="is whole; `hubextrap push"):
        hubextrap.merge(recipe, out=out, push=targets)
    hub.faults.clear()
    before = identities(out)
    (out / "mine.txt").write_text("mine")  # nothing of it is anybody's business
    hub.requests.clear()
    hubextrap.merge(recipe, out=out, push=targets, progress=lines)
    assert lines.said[-1].endswith("is whole since an earlier run; going on with what was to follow")
    assert weights_read(hub) == []
    assert identities(out) == before
    assert (out / "mine.txt").read_text() == "mine"
    for target in targets:
        assert not hubextrap.verify(target.name).problems
    assert not place_of(out).exists()
    with pytest.raises(OutputError, match="is there already and not empty"):
        hubextrap.merge(recipe, out=out)
    with pytest.raises(OutputError, match=r"--out is a folder on this disk; .*push FOLDER OWNER/NAME@BRANCH"):
        hubextrap.merge(recipe, out="hf://buckets/me/made")


def test_a_folder_that_changed_since(
    hub: LocalHub, run_on_hub: str, recipe_file: Recipe, tmp_path: Path
) -> None:
    """What is there is no longer what was made, so it is the user's."""
    out, target = tmp_path / "out", hubextrap.PushTarget(f"{run_on_hub}-made")
    hub.faults.add(Fault(r"/commit/", "POST", status=403, count=100))
    recipe = hubextrap.load_recipe(recipe_file(run_on_hub))
    with pytest.raises(PushError):
        hubextrap.merge(recipe, out=out, push=[target])
    hub.faults.clear()
    content = bytearray(sorted(out.glob("*.safetensors"))[3].read_bytes())
    content[-1] ^= 1
    sorted(out.glob("*.safetensors"))[3].write_bytes(content)
    other = hubextrap.load_recipe(recipe_file(run_on_hub, target_step=40))
    for each in (recipe, other):
        with pytest.raises(OutputError, match="is there already and not empty"):
            hubextrap.merge(each, out=out, push=[target])
    assert sorted(out.glob("*.safetensors"))[3].read_bytes() == content


@pytest.mark.parametrize("file", ["model-00003-of-00012.safetensors", "config.json"])
def test_a_checkpoint_that_changed_since(
    hub: LocalHub,
    run_on_hub: str,
    run_folder: Path,
    recipe_file: Recipe,
    tmp_path: Path,
    lines: Lines,
    file: str,
) -> None:
    """Of the same size and time: what lies there is not what this merge would write."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    out, target = tmp_path / "out", hubextrap.PushTarget(f"{run_on_hub}-made")
    recipe = hubextrap.load_recipe(recipe_file(run))
    hub.faults.add(Fault(r"/commit/", "POST", status=403, count=100))
    with pytest.raises(PushError):
        hubextrap.merge(recipe, out=out, push=[target])
    hub.faults.clear()
    place, before = run / "step_10" / file, identities(out)
    content, status = place.read_bytes(), place.stat()
    other = content.replace(b"llama", b"mamba") if file == "config.json" else content[:-1] + b"?"
    assert other != content
    place.write_bytes(other)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OutputError, match="is there already and not empty"):
        hubextrap.merge(recipe, out=out, push=[target], progress=lines)
    assert any("changed since" in line or "is not what this merge writes" in line for line in lines.said)
    assert identities(out) == before


@pytest.mark.parametrize("planted", ["journal-0.jsonl", "model", "model/sub", "lock", "pipe"])
def test_a_place_that_came_with_a_link_in_it(
    run_folder: Path, recipe_file: Recipe, tmp_path: Path, planted: str
) -> None:
    """As an archive can carry one, mark included: what the link leads to is not written to, nor removed."""
    recipe, out = hubextrap.load_recipe(recipe_file(run_folder)), tmp_path / "out"
    place, mine = place_of(out), tmp_path / "mine"
    (place / "model").mkdir(parents=True)
    (place / "lock").write_bytes(b"%19d made by hubextrap\n" % 0)
    (place / "journal-0.jsonl").write_bytes(b"")
    mine.mkdir()
    (mine / "file").write_text("mine")
    if planted == "pipe":
        os.mkfifo(place / "model" / planted)
    elif planted.startswith("model"):
        shutil.rmtree(place / planted, ignore_errors=True)
        (place / planted).symlink_to(mine)
    else:
        (place / planted).unlink()
        (place / planted).symlink_to(mine / "file")
    problems = hubextrap.plan(recipe, out=out).problems
    with pytest.raises(OutputError, match=r"did not mark as its own|which hubextrap never made") as error:
        hubextrap.merge(recipe, out=out)
    assert problems == (str(error.value),)
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]
    assert not out.exists()


def test_a_refused_commit(hub: LocalHub, run_on_hub: str, recipe_file: Recipe, lines: Lines) -> None:
    target = hubextrap.PushTarget(f"{run_on_hub}-made")
    recipe = hubextrap.load_recipe(recipe_file(run_on_hub))
    hub.faults.add(Fault(r"/commit/", "POST", status=403, count=100))
    with pytest.raises(PushError, match="403"):
        hubextrap.merge(recipe, push=[target])
    hub.faults.clear()
    hub.requests.clear()
    hubextrap.merge(recipe, push=[target], progress=lines)
    assert f"resuming: {SHARDS} of {SHARDS} shards are there" in lines.said
    assert weights_read(hub) == []
    assert not [r for r in hub.requests if r.method == "PUT"]
    assert not hubextrap.verify(target.name).problems
    assert not push_place(target).exists()


def test_no_room_for_a_side_file(
    run_folder: Path,
    recipe_file: Recipe,
    full_disk: Callable[[], AbstractContextManager[None]],
    tmp_path: Path,
    lines: Lines,
) -> None:
    shutil.copytree(run_folder, run := tmp_path / "run")
    recipe, out = hubextrap.load_recipe(recipe_file(run)), tmp_path / "out"
    with full_disk(), pytest.raises(OutputError, match="model-00007"):
        hubextrap.merge(recipe, out=out)
    before = identities(place_of(out))
    (run / "step_10" / "vocab.txt").write_bytes(b"x" * 200_000)
    with full_disk(), pytest.raises(OutputError, match=r"vocab\.txt: cannot be written"):
        hubextrap.merge(recipe, out=out)
    assert identities(place_of(out)) == before
    hubextrap.merge(recipe, out=out, progress=lines)
    assert f"resuming: 6 of {SHARDS} shards are there" in lines.said
    assert before.items() <= identities(out).items()
    assert not hubextrap.verify(out).problems


@pytest.mark.parametrize("into_folder", [True, False])
def test_an_evaluation(
    hub: LocalHub, run_on_hub: str, tmp_path: Path, lines: Lines, into_folder: bool
) -> None:
    """The task's own code fails, which nothing can find out beforehand."""
    pytest.importorskip("lm_eval")
    task = "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: problems.jsonl}}\n"
    task += "test_split: test\noutput_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
    task += "generation_kwargs: {max_gen_toks: 2, until: [x]}\nprocess_results: !function broken.fail\n"
    task = task.replace("problems.jsonl", str(tmp_path / "problems.jsonl"))
    (tmp_path / "broken.yaml").write_text(task + "metric_list: [{metric: exact_match}]\n")
    (tmp_path / "broken.py").write_text("def fail(doc, results):\n    raise ValueError('broken')\n")
    (tmp_path / "problems.jsonl").write_text(json.dumps({"question": "1+1=", "answer": "2"}) + "\n")
    content = {
        "trajectory": {"repo": str(ROOT / "demo" / "data" / "rlvr-C"), "steps": {"only": [0, 40]}},
        "merge_method": "two_point",
        "parameters": {"target_step": 60},
        "evaluate": {"tasks": "broken", "include_path": str(tmp_path)},
    }
    if not into_folder:
        content["push"] = {"repo": f"{run_on_hub}-made"}
    recipe = hubextrap.parse_recipe(yaml.safe_dump(content))
    out = tmp_path / "out" if into_folder else None
    with pytest.raises(HubExtrapError, match="lm-eval failed"):
        hubextrap.run(recipe, out=out, progress=lines)
    assert lines.said[-1] == "the prediction is whole; the same command goes on with its evaluation"
    before = {name: kept for name, kept in identities(tmp_path).items() if "pycache" not in str(name)}
    hub.requests.clear()
    with pytest.raises(HubExtrapError):
        hubextrap.run(recipe, out=out, progress=lines)
    said = "is whole since an earlier run" if into_folder else "resuming: 1 of 1"
    assert any(said in line for line in lines.said)
    assert {name: kept for name, kept in identities(tmp_path).items() if "pycache" not in str(name)} == before
    assert not [request for request in hub.requests if request.method == "PUT"]
