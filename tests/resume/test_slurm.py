"""Merges that Slurm's jobs make while they are killed: what comes out is what one process makes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import SHARDS
from huggingface_hub import HfApi
from slurm_clusters import FakeSlurm, RealSlurm

from hubextrap import api
from hubextrap.api.staging import remove_leftover
from hubextrap.executors.slurm import SlurmExecutor
from hubextrap.executors.submission import Submission
from hubextrap.localhub import LocalHub
from hubextrap.recipe import load_recipe
from hubextrap.work.places import open_place

Contents = Callable[[Path], dict[str, bytes]]
Cluster = FakeSlurm | RealSlurm
KILLS: dict[type[Cluster], tuple[int, int]] = {FakeSlurm: (20, 5), RealSlurm: (6, 2)}
"""How many workers and last steps are killed in all of a test's merges."""
ONE_THREAD = api.MergeOptions(workers=1)
"""Each cluster has two CPUs: two tasks at a time."""
LONGEST = 240.0
"""Seconds that one test may take, before it fails."""


@pytest.fixture(scope="module")
def _real() -> Iterator[RealSlurm]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # pytest's own is too long for a socket
        cluster = RealSlurm(Path(folder))
        yield cluster
        cluster.close()


@pytest.fixture(params=["fake", "real"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    if request.param == "real":
        real: RealSlurm = request.getfixturevalue("_real")
        monkeypatch.setenv("SLURM_CONF", str(real.config))
        yield real
        real.cancel_all()
        return
    fake = FakeSlurm(tmp_path_factory.mktemp("slurm"), monkeypatch)
    yield fake
    fake.close()


class Killer(threading.Thread):
    """Kills every other worker, and each last step up to three times, at any moment of what they do."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.workers, self.last_steps = cluster, *KILLS[type(cluster)]
        began = time.monotonic()
        command = [sys.executable, "-m", "hubextrap", "worker", "/nowhere"]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
        self._lasts = dict.fromkeys(("worker", "last step"), 1.5 * (time.monotonic() - began))
        """How long the last one lived that was left alone, which changes with what else the machine does."""
        self._began: dict[tuple[str, int], float] = {}
        self.killed = {"worker": 0, "last step": 0}
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._dies: dict[tuple[str, int], float] = {}

    @property
    def goes_on(self) -> bool:
        return self.killed["worker"] < self.workers or self.killed["last step"] < self.last_steps

    def run(self) -> None:
        while not self._ended.wait(0.05):
            there = {(job, pid) for pid, job in self.cluster.processes().items()}
            for job, pid in there:
                self._see(_kind(job), job, pid)
            for job, pid in self._began.keys() - there:
                self._lasts[_kind(job)] = time.monotonic() - self._began.pop((job, pid))

    def _see(self, kind: str, job: str, pid: int) -> None:
        now = time.monotonic()
        if (job, pid) not in self._dies:
            before = sum(other == job for other, _ in self._dies)
            lives = before >= 3 if kind == "last step" else self._random.random() < 0.5
            self._dies[job, pid] = math.inf if lives else now + self._lasts[kind] * self._random.random()
            self._began[job, pid] = now
        limit = self.workers if kind == "worker" else self.last_steps
        if now > self._dies[job, pid] and self.killed[kind] < limit:
            self._dies[job, pid] = math.inf
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[kind] += 1
                del self._began[job, pid]

    def end(self) -> None:
        self._ended.set()
        self.join()


def _kind(job: str) -> str:
    return "worker" if "_" in job else "last step"


def _given_up(place: str) -> bool:
    """Whether the last step has ended because as many workers in a row were lost as it submits again."""
    submission = Submission.load(open_place(place))
    if submission is None:
        return False
    log = Path(place, "logs", f"{submission.last}.out")
    return log.exists() and "times the workers were lost" in log.read_text()


def under_fire(cluster: Cluster, seed: int, make: Callable[[int], str], check: Callable[[int], None]) -> None:
    """Submit merges until enough was killed, and see that each ends as if nobody had been."""
    killer, began = Killer(cluster, seed), time.monotonic()
    killer.start()
    try:
        for number in range(10**6):
            place = make(number)
            cluster.wait(LONGEST)
            while _given_up(place):  # one worker was killed too often in a row: what anybody is told to do
                assert make(number) == place
                cluster.wait(LONGEST)
            if Path(place, "plan.json").exists():  # what anybody does whose last step was killed for good
                api.finish(place)
            check(number)
            if not killer.goes_on:
                break
            assert time.monotonic() - began < LONGEST, killer.killed
    finally:
        killer.end()
    print(f"{number + 1} merges, killed {killer.killed}, {time.monotonic() - began:.0f} s")


@pytest.mark.slow
def test_folders(
    cluster: Cluster, run_folder: Path, recipe_file: Callable[..., Path], tmp_path: Path, contents: Contents
) -> None:
    recipe = load_recipe(recipe_file(run_folder))
    api.merge(recipe, out=tmp_path / "local")
    expected = contents(tmp_path / "local")

    def make(number: int) -> str:
        return api.submit(
            recipe, SlurmExecutor(tasks=5), out=tmp_path / f"out-{number}", settings=ONE_THREAD
        ).place

    def check(number: int) -> None:
        assert contents(tmp_path / f"out-{number}") == expected
        remove_leftover(tmp_path / f"out-{number}")  # of a last step that was killed while it cleared up
        assert list(tmp_path.glob(".*")) == []

    under_fire(cluster, 1, make, check)


@pytest.mark.slow
@pytest.mark.usefixtures("logged_in")
def test_commits(cluster: Cluster, hub: LocalHub, run_on_hub: str, recipe_file: Callable[..., Path]) -> None:
    hub.create_repo(f"{run_on_hub}-predicted")
    recipe = load_recipe(recipe_file(run_on_hub))
    api.merge(recipe, push=f"{run_on_hub}-predicted@local")
    expected = commit_of(f"{run_on_hub}-predicted", "local")
    assert len(expected[1]) > SHARDS

    def make(number: int) -> str:
        return api.submit(
            recipe,
            SlurmExecutor(tasks=5),
            push=f"{run_on_hub}-predicted@number-{number}",
            settings=ONE_THREAD,
        ).place

    def check(number: int) -> None:
        assert commit_of(f"{run_on_hub}-predicted", f"number-{number}") == expected

    under_fire(cluster, 2, make, check)


def commit_of(repo: str, branch: str) -> tuple[list[str], dict[str, str]]:
    """The titles of a branch's commits, and each file's hash but for the card, which names the branch."""
    hub = HfApi()
    files = {
        one.path: one.lfs.sha256 if one.lfs else one.blob_id
        for one in hub.list_repo_tree(repo, revision=branch)
        if one.path not in (".gitattributes", "README.md")
    }
    return [commit.title for commit in hub.list_repo_commits(repo, revision=branch)], files


@pytest.mark.slow
def test_the_commands(
    run_folder: Path,
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A submitted merge, what `finish` says of it before its end, and after."""
    recipe = recipe_file(run_folder)
    api.merge(load_recipe(recipe), out=tmp_path / "local")
    cluster = FakeSlurm(tmp_path / "slurm", monkeypatch)
    try:
        submit = ["submit", recipe, "--out", tmp_path / "out", "--slurm", "--tasks", "2"]
        dry = hubextrap(*submit, "--dry-run")
        assert dry.stdout.count("#!/bin/bash\n") == 2
        assert cluster.calls("sbatch") == []
        refused = hubextrap(*submit, "--sbatch=--partition=gpu")
        assert refused.returncode == 1
        assert "Invalid partition name specified" in refused.stderr
        (cluster.state / "held").touch()
        said = json.loads(hubextrap(*submit, "--sbatch=--partition=cpu", "--json").stdout)
        assert (said["units"], said["jobs"]) == (SHARDS, ["1", "2"])
        assert (said["watch"], said["cancel"]) == ("squeue -j 1,2", "scancel 1 2")
        early = hubextrap("finish", said["place"])
        assert early.returncode == 1
        assert "`squeue -j 1,2` shows the jobs that make them" in early.stderr
        assert hubextrap("merge", recipe, "--out", tmp_path / "out").returncode == 1
        asked = len(cluster.calls("squeue"))
        command = [sys.executable, "-m", "hubextrap", "finish", said["place"], "--wait"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            while len(cluster.calls("squeue")) == asked:  # else all may be done before it looks
                assert waiting.poll() is None
                time.sleep(0.05)
            (cluster.state / "held").unlink()
            _, stderr = waiting.communicate(timeout=120)
        assert waiting.returncode == 0, stderr
        cluster.wait()
        assert contents(tmp_path / "out") == contents(tmp_path / "local")
    finally:
        cluster.close()


def hubextrap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hubextrap", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
