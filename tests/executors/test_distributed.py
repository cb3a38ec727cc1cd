"""A merge whose shards other processes make: the folder is the local run's, whatever happens to them."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import yaml
from executors.processes import ProcessExecutor

from hubextrap import api
from hubextrap.executors.interface import RETRIES
from hubextrap.executors.testing_run import TinyRun

pytestmark = pytest.mark.slow


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> ProcessExecutor:
    executor = ProcessExecutor()
    monkeypatch.setattr("hubextrap.api.distributing.executor_named", lambda name: executor)
    return executor


def merged(tmp_path: Path, name: str, executor: str) -> dict[str, bytes]:
    recipe = tmp_path / "recipe.yaml"
    parameters = {"target_step": [600, 800]}
    recipe.write_text(
        yaml.safe_dump(
            {
                "trajectory": {"repo": str(tmp_path / "run")},
                "merge_method": "two_point",
                "parameters": parameters,
            }
        )
    )
    settings = api.MergeOptions(executor=executor, force=True)
    api.merge(recipe, out=tmp_path / name, settings=settings)
    assert not (tmp_path / f".{name}.partial").exists()
    return {
        str(path.relative_to(tmp_path / name)): path.read_bytes()
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
    }


def test_as_if_it_were_made_here(tmp_path: Path, executor: ProcessExecutor) -> None:
    TinyRun.write(tmp_path / "run")
    assert merged(tmp_path, "there", "ray") == merged(tmp_path, "here", "local")


def test_what_killed_workers_left_is_not_in_the_output(tmp_path: Path, executor: ProcessExecutor) -> None:
    """Nor what one is still writing that stood still while another made the same."""
    TinyRun.write(tmp_path / "run", large=64_000_000)
    ended, killed, rng = threading.Event(), list[int](), random.Random(7)

    def kill() -> None:
        # more of them could all meet one unit, which would then be given up
        while not ended.wait(rng.uniform(0.1, 0.5)) and len(killed) < RETRIES:
            for process in list(executor.running)[:1]:
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)

    def leave_one() -> None:
        folder = tmp_path / ".there.partial" / "model"
        while not ended.wait(0.01):
            if folder.is_dir() and (inside := [one for one in folder.iterdir() if one.is_dir()]):
                (inside[0] / ".hubextrap-0123456789abcdef").write_bytes(b"half a shard")
                return

    threads = [threading.Thread(target=one) for one in (kill, leave_one)]
    for thread in threads:
        thread.start()
    try:
        there = merged(tmp_path, "there", "ray")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert killed
    assert there == merged(tmp_path, "here", "local")
