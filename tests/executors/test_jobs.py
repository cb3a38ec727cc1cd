"""HF Jobs: whole merges from Hub to Hub by jobs that the loopback Hub runs as processes here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from hubextrap import api
from hubextrap.executors.jobs import JobsExecutor
from hubextrap.localhub import LocalHub
from hubextrap.localhub.jobs import FINISHED, Jobs

pytestmark = pytest.mark.usefixtures("logged_in")

SHARDS = 8
BUCKET = "me/work"
_PASSED_ON = ("PYTHONPATH", "HUBEXTRAP_TESTS_OTHER_HOSTS", "OMP_NUM_THREADS")


@pytest.fixture
def jobs_hub(hub: LocalHub, tmp_path: Path) -> Iterator[LocalHub]:
    """The session's hub, for once one that runs jobs."""
    hub.jobs = Jobs(tmp_path / "jobs")
    hub.jobs.environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    hub.jobs.environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "NUMBA_CACHE_DIR": str(tmp_path / "compiled"),
    }
    yield hub
    hub.jobs.stop()
    hub.jobs = None


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
