"""HF Jobs: whole merges from Hub to Hub by jobs that the loopback Hub runs as processes here."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from hubextrap import api
from hubextrap.executors.jobs import JobsExecutor
from hubextrap.localhub import LocalHub
from hubextrap.localhub.jobs import FINISHED
from hubextrap.work.bucket import BucketPlace

pytestmark = pytest.mark.usefixtures("logged_in")

SHARDS = 8
BUCKET = "me/work"


@pytest.fixture
def run_repo(hub: LocalHub, repo_id: str) -> str:
    """Three checkpoints of eight shards, each a branch of a repo."""
    repo, rng = f"{repo_id}-run", np.random.default_rng(3)
    hub.create_repo(repo)
    for step in (0, 100, 200):
        files: dict[str, bytes | Path | None] = {"config.json": b'{"model_type": "llama"}\n'}
        weight_map = {}
        for number in range(1, SHARDS + 1):
            name = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
            tensors = {
                f"layers.{number}.{part}": rng.standard_normal((40, 50)).astype("float32") for part in "ab"
            }
            files[name] = save(tensors, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": 40 * 50 * 4 * 2 * SHARDS}, "weight_map": weight_map}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
        hub.commit(repo, files, revision=f"step_{step}")
    return repo


@pytest.fixture
def recipe(run_repo: str, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"trajectory:\n  repo: {run_repo}\n  steps: {{pattern: 'step_{{step}}'}}\n"
        "merge_method: two_point\nparameters:\n  target_step: 300\n  base_step: 100\n"
    )
    return path


def content(hub: LocalHub, repo: str) -> tuple[str, str, int]:
    """The tree of a repo's head, which names every byte; its message; and how many commits there are."""
    git = hub.store.get("model", repo)
    head = git.head("main")
    return str(head.tree.id), head.message, len(list(git.history(head)))


@pytest.fixture
def expected(hub: LocalHub, recipe: Path, repo_id: str) -> tuple[str, str, int]:
    """What a local run pushes to the repo, which is gone again."""
    api.merge(recipe, push=repo_id)
    found = content(hub, repo_id)
    HfApi().delete_repo(repo_id)
    return found


def await_end(hub: LocalHub, seconds: float) -> None:
    """Until no job is left."""
    assert hub.jobs is not None
    end = time.monotonic() + seconds
    while any(job.stage not in FINISHED for job in hub.jobs.of("me")):
        assert time.monotonic() < end, "jobs hang"
        time.sleep(0.05)


def outcome(hub: LocalHub) -> list[tuple[str, str | None, str]]:
    assert hub.jobs is not None
    return [(job.stage, job.message, job.log.read_text()[-2000:]) for job in hub.jobs.of("me")]


@pytest.mark.slow
def test_four_jobs_make_the_commit_of_a_local_run(
    jobs_hub: LocalHub, recipe: Path, expected: tuple[str, str, int], repo_id: str, logged_in: str
) -> None:
    done = api.submit(recipe, JobsExecutor(4, bucket=BUCKET), push=repo_id)
    assert done.queued is not None
    assert (done.units, len(done.queued.ids)) == (SHARDS, 4)
    await_end(jobs_hub, 120)
    assert [stage for stage, _, _ in outcome(jobs_hub)] == ["COMPLETED"] * 4, outcome(jobs_hub)
    assert content(jobs_hub, repo_id) == expected


class Killer:
    """Kills jobs' processes at random moments: while shards are made, and in the last step."""

    def __init__(self, hub: LocalHub, place: BucketPlace, working: int, finishing: int) -> None:
        self.hub, self.place = hub, place
        self.left = {"working": working, "finishing": finishing}
        self.ended = threading.Event()
        self._rng = random.Random(working)
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join()

    def _kill(self) -> None:
        seen = 0
        while not self.ended.wait(self._rng.uniform(0.05, 0.9)) and any(self.left.values()):
            assert self.hub.jobs is not None
            running = list(self.hub.jobs.processes().values())
            asked = self.hub.requests[seen:]
            finishing = any("beside%2F" in one.path and one.method == "GET" for one in asked)
            phase = "finishing" if finishing else "working"
            if not running or not self.left[phase]:
                continue
            if finishing:
                time.sleep(0.05 * self.left[phase])  # from after the commit to before it
                seen = len(self.hub.requests)
            for process in running if finishing else [self._rng.choice(running)]:
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            self.left[phase] -= 1


@pytest.mark.slow
def test_jobs_killed_at_random(
    jobs_hub: LocalHub, recipe: Path, expected: tuple[str, str, int], repo_id: str
) -> None:
    """Twenty while they work, five in their last step; what the Hub gives up is submitted again."""

    def submit() -> BucketPlace:
        return BucketPlace(api.submit(recipe, JobsExecutor(4, bucket=BUCKET), push=repo_id).place)

    place = submit()
    jobs_hub.requests.clear()
    with Killer(jobs_hub, place, working=20, finishing=5) as killer:
        for _ in range(12):
            await_end(jobs_hub, 200)
            if place.read("plan.json") is None:
                assert content(jobs_hub, repo_id) == expected
                if not any(killer.left.values()):
                    break
                HfApi().delete_repo(repo_id)  # once more, for the kills that are left
            submit()
    assert killer.left == {"working": 0, "finishing": 0}, outcome(jobs_hub)
    assert content(jobs_hub, repo_id) == expected
    assert place.names("done") == place.names("beside/0") == frozenset()
