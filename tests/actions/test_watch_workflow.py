"""watch.yml: each look goes on from what the last one left, and its page and summary are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubextrap.localhub import LocalHub
from hubextrap.watching import read_history

DISPATCHED: dict[str, Any] = {"event_name": "workflow_dispatch", "run_id": "7", "run_attempt": "1"}


@pytest.fixture
def on_hub(hub: LocalHub, repo_id: str, demo_data: Path) -> Callable[[int], None]:
    hub.create_repo(repo_id)

    def push(step: int) -> None:
        folder = demo_data / "rlvr-C" / f"step_{step}"
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=folder.name)

    return push


@pytest.mark.slow
def test_looks_follow_one_another(
    runner: Any, hub: LocalHub, repo_id: str, token: str, on_hub: Callable[[int], None]
) -> None:
    for step in (0, 40, 80, 120):
        on_hub(step)
    push = {"repo": f"{repo_id}-ahead", "revision": "from_{last_step}"}
    recipe = {"trajectory": {"repo": repo_id}, "watch": {"predict": {"ahead": 20}, "push": push}}
    (runner.workspace / "mine.yaml").write_text(yaml.safe_dump(recipe))
    runner.environment["HF_TOKEN"] = token
    how = {"github": DISPATCHED, "inputs": {"recipe": "mine.yaml"}, "secrets": {"HF_TOKEN": token}}
    ran = runner.job("watch.yml", "watch", **how)
    assert ran.code == 0, ran.log
    assert "predicted step 140" in ran.summary
    (cache,) = [
        given for use, given in ran.used if use.startswith("actions/cache") and "restore-keys" in given
    ]
    assert cache["key"] == "hubextrap-watched-7-1"
    assert cache["key"].startswith(cache["restore-keys"])
    (artifact,) = [given for use, given in ran.used if use.startswith("actions/upload-artifact")]
    assert artifact["name"] == "watched"
    kept = runner.workspace / cache["path"]
    assert all((runner.workspace / file).is_file() for file in artifact["path"].split())
    again = runner.job("watch.yml", "watch", **how)  # the cache brings the folder back
    assert again.code == 0, again.log
    assert again.summary == ""  # nothing is new
    on_hub(160)
    third = runner.job("watch.yml", "watch", **how)
    assert third.code == 0, third.log
    assert "In hindsight" in third.summary
    assert set(read_history(kept).taken) == {120, 160}
    shutil.rmtree(kept)


def test_nothing_is_watched_by_the_clock_unless_it_is_named(runner: Any) -> None:
    clock = {"github": {"event_name": "schedule"}}
    assert not runner.runs("watch.yml", "watch", **clock, vars={})
    assert runner.runs("watch.yml", "watch", **clock, vars={"HUBEXTRAP_WATCH": "me/run"})


def test_two_names_do_not_wait_for_each_other(runner: Any) -> None:
    groups = {
        runner.concurrency("watch.yml", github={"ref": "main"}, inputs={"name": name})
        for name in ("", "a", "b")
    }
    assert len(groups) == 3
