"""Runs of adapters under SIGKILL: bytes as if nobody had stopped them; what changed meanwhile is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from adapter_runs import write_adapter_run
from harness import Warm
from kills import Killer, into_folders, onto_hub, wait_for_shards

from hubextrap.api.staging import remove_leftover
from hubextrap.localhub import LocalHub

KINDS = ("adapter", "merged")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two adapters, and their base in a file for every tensor or two."""
    from transformers import AutoModelForCausalLM

    root = write_adapter_run(tmp_path / "run", (10, 20), rank={10: 2, 20: 4})
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    (root / "base" / "model.safetensors").unlink()
    model.save_pretrained(root / "base", max_shard_size="2KB")
    return root


def recipe_of(run: Path, kind: str, folder: Path) -> Path:
    content = {
        "trajectory": {"repo": str(run)},
        "merge_method": "two_point",
        "parameters": {"target_step": 30},
        "output": {"as": kind},
    }
    folder.mkdir(parents=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_every_run_ends_in_the_same_bytes(
    warm: Warm,
    hub: LocalHub,
    run: Path,
    repo_id: str,
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    killer = Killer(warm, seed=17, kills=16, resumed=4)
    kinds = []
    for kind in KINDS:
        hub.create_repo(f"{repo_id}-{kind}")
        place = tmp_path / f"{kind}-here"
        kinds.append(into_folders(killer, recipe_of(run, kind, place), place, contents))
        there = recipe_of(run, kind, tmp_path / f"{kind}-there")
        kinds.append(onto_hub(killer, there, f"{repo_id}-{kind}"))
    while killer.goes_on:
        for one in kinds:
            one()
    assert killer.resumed >= 4
    assert not list(killer.warm.temporary.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("step_20/adapter_model.safetensors", "the checkpoint of step 20"),
        ("step_20/adapter_config.json", "the checkpoint of step 20"),
        ("base/config.json", "the base model"),
        ("base/*-00001-of-*", "the base model"),
    ],
)
def test_what_changed_since_a_stop_is_noticed(
    warm: Warm,
    run: Path,
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    file: str,
    said: str,
) -> None:
    recipe, out = recipe_of(run, "merged", tmp_path / "here"), tmp_path / "out"
    for _ in range(20):
        pid = warm.start("merge", recipe, "--out", out)
        wait_for_shards(tmp_path / ".out.partial" / "journal-0.jsonl", 2, pid)
        warm.end(pid, after=0.0)
        if not out.exists():
            break
        remove_leftover(out)
        for path in out.iterdir():  # it was quicker, or killed while it cleared up
            path.unlink()
        out.rmdir()
    (changed,) = run.glob(file)
    if changed.suffix == ".json":
        content = json.loads(changed.read_text())
        changed.write_text(json.dumps(content | {"lora_alpha": 7, "torch_dtype": "float32"}))
    else:
        content = bytearray(changed.read_bytes())
        content[-1] ^= 1
        changed.write_bytes(content)
    ended = warm.run("merge", recipe, "--out", out)
    assert ended.code == 0, ended.output
    assert f"starting over, as {said} changed" in ended.output
    afresh = warm.run("merge", recipe, "--out", tmp_path / "afresh")
    assert afresh.code == 0, afresh.output
    assert contents(out) == contents(tmp_path / "afresh")
