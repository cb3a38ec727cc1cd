"""HF Jobs: whole merges from Hub to Hub by jobs that the loopback Hub runs as processes here."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from kinds_of_runs import hubextrap, straight, write_run
from safetensors.numpy import save

from hubextrap import api
from hubextrap.errors import (
    AccessDenied,
    MissingExtra,
    NonFinite,
    OutputError,
    SourceError,
    WrongArgument,
)
from hubextrap.executors.jobs import JobsExecutor
from hubextrap.localhub import Fault, LocalHub
from hubextrap.localhub.jobs import FINISHED, Job, Jobs, JobSpec
from hubextrap.work.bucket import BucketPlace

pytestmark = pytest.mark.usefixtures("logged_in")

SHARDS = 8
BUCKET = "me/work"


def passed_on() -> dict[str, str]:
    """What Python needs for the tests' own package, in jobs too."""
    names = ("PYTHONPATH", "HUBEXTRAP_TESTS_OTHER_HOSTS", "OMP_NUM_THREADS")
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.fixture
def run_repo(hub: LocalHub, repo_id: str) -> str:
    """Three checkpoints of eight shards, each a branch of a repo."""
    return write_to(hub, f"{repo_id}-run")


def write_to(hub: LocalHub, repo: str) -> str:
    rng = np.random.default_rng(3)
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
    return recipe_of(run_repo, tmp_path / "recipe.yaml")


def recipe_of(run_repo: str, path: Path) -> Path:
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


def await_end(hub: LocalHub, seconds: float, user: str = "me") -> None:
    """Until no job is left."""
    assert hub.jobs is not None
    end = time.monotonic() + seconds
    while any(job.stage not in FINISHED for job in hub.jobs.of(user)):
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


@pytest.mark.slow
def test_by_command_and_over_xet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`submit`, `finish --wait` and the jobs, all with clients that send large files over Xet."""
    with LocalHub(tmp_path / "hub", tokens={"hf_xet": "you"}, xet=True, run_jobs=True) as hub:
        assert hub.jobs is not None
        hub.jobs.environment |= passed_on()
        monkeypatch.delenv("HF_HUB_DISABLE_XET")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", "hf_xet")
        recipe = recipe_of(write_to(hub, "you/run"), tmp_path / "recipe.yaml")
        local = hubextrap("merge", recipe, "--push", "you/made", at=tmp_path)
        assert local.returncode == 0, local.stderr
        wanted = content(hub, "you/made")
        HfApi(endpoint=hub.url).delete_repo("you/made")
        made = hubextrap("submit", recipe, "--push", "you/made", "--jobs", "3", "--json", at=tmp_path)
        assert made.returncode == 0, made.stderr
        said = json.loads(made.stdout)
        assert (said["units"], len(said["jobs"])) == (SHARDS, 3)
        await_end(hub, 120, "you")
        assert content(hub, "you/made") == wanted
        gone = hubextrap("finish", said["place"], at=tmp_path)
        assert (gone.returncode, "plan.json" in gone.stderr) == (1, True)
        asked = [request.path for request in hub.requests if "/xet-write-token" in request.path]
        assert {path.split("/")[2] for path in asked} == {"models", "buckets"}


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
    assert place.read("plan.json") is None, outcome(jobs_hub)
    assert place.names("done") == place.names("beside/0") == frozenset()


@pytest.mark.slow
def test_no_secret_leaves_its_field(
    jobs_hub: LocalHub, recipe: Path, repo_id: str, logged_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the plan, a record, a command, a label, a variable, an answer or a log."""
    sent: list[dict[str, Any]] = []
    submit = Jobs.submit

    def seen(self: Jobs, owner: str, spec: JobSpec) -> Job:
        sent.append(vars(spec))
        return submit(self, owner, spec)

    monkeypatch.setattr(Jobs, "submit", seen)
    monkeypatch.setattr(BucketPlace, "remove", lambda self: None)  # only here, not in the jobs
    executor = JobsExecutor(2, flavor="cpu-basic", timeout="5m", bucket=BUCKET)
    done = api.submit(recipe, executor, push=repo_id)
    written = bucket_contents(jobs_hub)
    await_end(jobs_hub, 120)
    assert [dict(spec["secrets"]) for spec in sent] == [{"HF_TOKEN": logged_in}] * 2
    for spec in sent:
        assert (spec["flavor"], spec["timeout"], spec["attempts"]) == ("cpu-basic", 300.0, 4)
        assert done.place in spec["command"]
        assert spec["labels"].keys() == {"hubextrap", "plan", "name"}
        assert logged_in not in repr({name: value for name, value in spec.items() if name != "secrets"})
    assert any(path.endswith("plan.json") for path in written)
    assert not [path for path, data in written.items() if logged_in.encode() in data]
    assert not [log for _, _, log in outcome(jobs_hub) if logged_in in log]
    assert logged_in not in json.dumps(executor.settings()) + repr(done)


def bucket_contents(hub: LocalHub) -> dict[str, bytes]:
    bucket = hub.buckets.get(BUCKET)
    found = {}
    for path, entry in bucket.entries().items():
        content = bucket.content(entry)
        found[path] = content if isinstance(content, bytes) else content.read_bytes()
    return found


@pytest.mark.slow
def test_submitted_again_while_jobs_run(jobs_hub: LocalHub, recipe: Path, repo_id: str) -> None:
    """What runs is left alone; a job that was cancelled is started anew, for its units alone."""
    let_go = threading.Event()
    jobs_hub.faults.add(Fault(path=f"{repo_id}.*preupload", until=let_go, count=1000))
    first = api.submit(recipe, JobsExecutor(4, bucket=BUCKET), push=repo_id).queued
    again = api.submit(recipe, JobsExecutor(4, bucket=BUCKET), push=repo_id).queued
    assert first is not None
    assert again == first
    HfApi().cancel_job(job_id=first.ids[0], namespace="me")
    assert jobs_hub.jobs is not None
    lost = jobs_hub.jobs.get("me", first.ids[0])
    while lost.stage not in FINISHED:
        time.sleep(0.02)
    third = api.submit(recipe, JobsExecutor(4, bucket=BUCKET), push=repo_id).queued
    assert third is not None
    new = set(third.ids) - set(first.ids)
    assert set(first.ids) - set(third.ids) == {lost.id}
    commands = [jobs_hub.jobs.get("me", one).spec.command for one in new]
    assert sorted(word for command in commands for word in command if word.isdigit()) == [
        word for word in lost.spec.command if word.isdigit()
    ]
    let_go.set()
    await_end(jobs_hub, 120)
    assert jobs_hub.faults.pending() < 1000  # it is this that they waited for
    assert content(jobs_hub, repo_id)[2] == 2


@pytest.mark.slow
def test_what_a_job_cannot_do_is_said(jobs_hub: LocalHub, recipe: Path, run_repo: str, repo_id: str) -> None:
    """The records hold why, and the last step says it; none is made, and no job does it."""
    nan = np.full((40, 50), np.nan, dtype="float32")
    name = f"model-00003-of-{SHARDS:05d}.safetensors"
    tensors = {"layers.3.a": nan, "layers.3.b": nan}
    jobs_hub.commit(run_repo, {name: save(tensors, metadata={"format": "pt"})}, revision="step_200")
    place = api.submit(recipe, JobsExecutor(2, bucket=BUCKET), push=repo_id).place
    await_end(jobs_hub, 120)
    assert {stage for stage, _, _ in outcome(jobs_hub)} == {"COMPLETED", "ERROR"}
    with pytest.raises(NonFinite, match=r"layers\.3\.a"):
        api.finish(place)
    assert content(jobs_hub, repo_id)[2] == 1


def test_folders_of_this_machine_are_refused(hub: LocalHub, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"do not see this machine's folders; give --push REPO"):
        api.submit(recipe, JobsExecutor(2, bucket=BUCKET), out=tmp_path / "out")
    run = write_run(tmp_path / "run", straight, (0, 100, 200))
    recipe.write_text(
        f"trajectory:\n  repo: {run}\nmerge_method: two_point\n"
        "parameters:\n  target_step: 300\n  base_step: 100\n"
    )
    with pytest.raises(SourceError, match=r"step_0: HF Jobs do not see .* push the checkpoints"):
        api.submit(recipe, JobsExecutor(2, bucket=BUCKET), push="me/never")
    assert [request for request in hub.requests if "/api/jobs" in request.path] == []


def test_a_dry_run_prints_the_commands(hub: LocalHub, recipe: Path, repo_id: str) -> None:
    asked = len(hub.requests)
    done = api.submit(recipe, JobsExecutor(3), push=repo_id, dry_run=True)
    lines = (done.script or "").splitlines()
    assert done.place.startswith("hf://buckets/me/hubextrap-work/")
    assert lines[0] == "3 jobs, flavor cpu-upgrade, timeout of the Hub:"
    assert [line.partition(" hubextrap worker ")[2] for line in lines[1:]] == [
        f"{done.place} --finish {units}" for units in ("0 3 6", "1 4 7", "2 5")
    ]
    assert lines[1].startswith(f"uv run --with hubextrap=={version('hubextrap')} --with numba==")
    assert not [one for one in hub.requests[asked:] if one.method != "GET" and "buckets" in one.path]


def test_a_file_with_the_name_of_an_argument(
    jobs_hub: LocalHub, recipe: Path, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would take it for a file to send, and the job for a number that no unit has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").write_text("mine")
    with pytest.raises(WrongArgument, match="3: a file of this name"):
        api.submit(recipe, JobsExecutor(1, bucket=BUCKET), push=repo_id)
    assert outcome(jobs_hub) == []


def test_who_is_not_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(AccessDenied, match="HF_TOKEN"):
        JobsExecutor(1).settings()


def test_a_hub_that_runs_no_jobs(hub: LocalHub, recipe: Path, repo_id: str) -> None:
    with pytest.raises(OutputError, match=r"HF Jobs: the Hub answered 501"):
        api.submit(recipe, JobsExecutor(1), push=repo_id)
    assert hub.buckets.get("me/hubextrap-work").about()["private"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"jobs": 0}, "jobs: has to be at least 1"),
        ({"jobs": 1, "timeout": "soon"}, "timeout: 'soon'"),
        ({"jobs": 1, "timeout": "0s"}, "timeout: '0s'"),
        ({"jobs": 1, "bucket": "work"}, "bucket: 'work' is not OWNER/NAME"),
    ],
)
def test_arguments_that_are_none(given: dict[str, Any], why: str) -> None:
    with pytest.raises(WrongArgument, match=why):
        JobsExecutor(**given)


def test_an_older_client_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubextrap.executors.jobs.version", lambda name: "2.0.0")
    with pytest.raises(MissingExtra, match=r"HF Jobs need huggingface_hub 2\.1\.1 or later, and 2\.0\.0"):
        JobsExecutor(1)
