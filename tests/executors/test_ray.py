"""Merges on Ray: the command's bytes are those of a merge without it, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from ray_nodes import Nodes, attempts_but_rays, wait_until

from hubextrap.api.staging import place_of, push_place
from hubextrap.errors import OutputError
from hubextrap.executors.on_ray import RayExecutor
from hubextrap.executors.testing_run import TinyRun, is_alive
from hubextrap.hub import PushTarget
from hubextrap.localhub import LocalHub
from hubextrap.progress import SilentProgress
from hubextrap.tensors import build_header
from hubextrap.work.kinds import PLAN_FILE

STEPS, SHARDS = (100, 250, 400), 12
LARGE = 16_000_000
"""Bytes of a tensor in each shard, which keep a worker busy for a moment."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes({"HF_TOKEN": "hf_" + "testtoken" * 3}) as nodes:
        yield nodes


@pytest.fixture
def other_hosts(other_hosts: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: attempts_but_rays(other_hosts())


def command(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`hubextrap` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hubextrap", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"} | environment,
    )


def done(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run a command to its end: its exit code, stdout and stderr."""
    return ended(command(*arguments, **environment))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a command; one that hangs shows where."""
    try:
        out, err = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"hangs: {process.communicate()[1]}")
    return process.returncode, out, err


def write_run(root: Path, *, large: int = 0, last: int = 0) -> Path:
    """Checkpoints of some kilobytes of random weights.

    Args:
        large: bytes of zeros in each shard beside them; they take no room on the disk.
        last: bytes of zeros in the last shard.
    """
    for step in STEPS:
        folder, weight_map = root / f"step_{step}", {}
        folder.mkdir(parents=True)
        for number in range(SHARDS):
            zeros = large + last * (number == SHARDS - 1)
            shapes = {f"layers.{number}.weight": (64, 32), f"layers.{number}.zeros": (zeros // 2 + 1,)}
            file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
            with (folder / file).open("wb") as written:
                written.write(build_header([(name, "BF16", shape) for name, shape in shapes.items()]))
                values = np.random.default_rng([step, number]).standard_normal(64 * 32).astype("<f4")
                written.write((values.view("<u4") >> 16).astype("<u2").tobytes())
                written.truncate(written.tell() + 2 * (zeros // 2 + 1))
            weight_map |= dict.fromkeys(shapes, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text("{}")
    return root


def write_recipe(path: Path, repo: str | Path) -> Path:
    content = {
        "trajectory": {"repo": str(repo)},
        "merge_method": "least_squares",
        "parameters": {"target_step": 500},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_of_ray_is_imported_unasked() -> None:
    look = (
        "import sys, hubextrap.api.merging, hubextrap.cli.merging, hubextrap.executors.named as named;"
        "named.executor_named('local');"
        "sys.exit(any(name.partition('.')[0] == 'ray' or '_ray' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


@contextmanager
def workers_killed(nodes: Nodes, times: int, seed: int) -> Iterator[list[int]]:
    """SIGKILL random processes of Ray's workers, the board's among them, at random moments."""
    killed: list[int] = []
    ended, rng = threading.Event(), random.Random(seed)

    def kill() -> None:
        while not ended.wait(rng.uniform(0.1, 0.8)) and len(killed) < times:
            if pids := nodes.workers(("ray::do_unit", "ray::IDLE", "ray::Board")):
                with suppress(ProcessLookupError):
                    os.kill(pid := rng.choice(pids), signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["folder", "hub"])
def test_twenty_workers_and_five_drivers_are_killed(
    target: str, nodes: Nodes, tmp_path: Path, hub: LocalHub, logged_in: str, repo_id: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", write_run(tmp_path / "run", large=LARGE))
    out = {"folder": ("--out", tmp_path / "out"), "hub": ("--push", f"{repo_id}@out")}[target]
    code, _, err = done("merge", recipe, *out)
    assert code == 0, err
    take = partial(_take, target, tmp_path, repo_id)
    expected = take()
    rng, drivers, killed, latest = random.Random(5), 0, list[int](), 12.0
    while len(killed) < 20 or drivers < 5:
        with workers_killed(nodes, 20 - len(killed), len(killed)) as now:
            process = command("merge", recipe, *out, "--executor", "ray", **nodes.environment)
            if drivers < 5:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(latest / 3, latest))
                process.kill()
            _, _, err = ended(process)
        killed += now
        drivers += process.returncode == -signal.SIGKILL
        latest *= 0.7 if process.returncode == 0 else 1.0  # it was too fast to be killed
        was_there = "is there already and not empty" in err  # a driver was killed while it cleared up
        assert process.returncode in (0, -signal.SIGKILL) or was_there or "was lost 4 times" in err, err
        if process.returncode == 0 or was_there or _is_settled(target, tmp_path, repo_id):
            assert take() == expected
    code, _, err = done("merge", recipe, *out, "--executor", "ray", **nodes.environment)
    assert code == 0, err
    assert take() == expected


def _is_settled(target: str, folder: Path, repo: str) -> bool:
    """Whether a driver that was killed had nothing left to do."""
    if target == "folder":
        return (folder / "out").exists() and not place_of(folder / "out").exists()
    there = HfApi().revision_exists(repo, "out")
    return there and not push_place(PushTarget(repo, "out")).exists()


def _take(target: str, folder: Path, repo: str) -> dict[str, object]:
    """What is in an output, and of its commits what does not depend on the time; removes it."""
    if target == "folder":
        found: dict[str, object] = dict(contents(folder / "out"))
        assert not (folder / ".out.partial").exists()
        shutil.rmtree(folder / "out")
        return found
    api = HfApi()
    found = {one.path: one.blob_id for one in api.list_repo_tree(repo, revision="out")}  # type: ignore[union-attr]
    found["commits"] = [commit.title for commit in api.list_repo_commits(repo, revision="out")]
    api.delete_branch(repo, branch="out")
    return found


@pytest.mark.slow
def test_a_cluster_is_started_where_there_is_none_and_says_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", write_run(tmp_path / "run"))
    with _rays_folder() as own:
        said = []
        for name in ("local", "ray"):
            merging = ("merge", recipe, "--out", tmp_path / name, "--executor", name, "--json")
            code, out, err = done(*merging, RAY_TMPDIR=str(own))
            assert code == 0, err
            assert len(json.loads(out)) == 1
            said.append({line.partition(":")[0] for line in err.splitlines()})
        assert said[0] == said[1]
        assert _with_variable(f"RAY_TMPDIR={own}") == []


@pytest.mark.slow
def test_ctrl_c_ends_all_that_was_started(tmp_path: Path) -> None:
    with _rays_folder() as own:
        _interrupt_at_the_last_unit(tmp_path, {"RAY_TMPDIR": str(own)})
        wait_until(lambda: not _with_variable(f"RAY_TMPDIR={own}"), 15, lambda: _titles(own))


@pytest.mark.slow
def test_ctrl_c_ends_what_it_has_under_way_on_a_cluster(nodes: Nodes, tmp_path: Path) -> None:
    there = set(nodes.processes())
    _interrupt_at_the_last_unit(tmp_path, nodes.environment)
    wait_until(lambda: not nodes.workers(("ray::do_unit", "ray::Board")), 15, nodes.workers)
    assert there & set(nodes.processes()), "the cluster itself is left"


def _interrupt_at_the_last_unit(tmp_path: Path, environment: dict[str, str]) -> None:
    """Press Ctrl-C while a worker is busy; what is done by then stays so."""
    recipe = write_recipe(tmp_path / "recipe.yaml", write_run(tmp_path / "run", last=150 * LARGE))
    process = command("merge", recipe, "--out", tmp_path / "out", "--executor", "ray", **environment)
    records = tmp_path / ".out.partial" / "work" / "done"
    wait_until(lambda: len(list(records.glob("*.json"))) == SHARDS - 1, 90)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted"), err
    assert len(list(records.glob("*.json"))) == SHARDS - 1


@contextmanager
def _rays_folder() -> Iterator[Path]:
    """A folder for Ray with a short path; what is left in it of processes is ended."""
    with Nodes.folder_only() as folder:
        yield folder
        for pid in _with_variable(f"RAY_TMPDIR={folder}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _with_variable(mark: str) -> list[int]:
    """The processes that were started with a variable."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if is_alive(pid)]


def _titles(own: Path) -> list[str]:
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in _with_variable(f"RAY_TMPDIR={own}")]


@pytest.mark.slow
def test_a_cluster_that_is_away(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", write_run(tmp_path / "run"))
    code, out, err = done(
        "merge", recipe, "--out", tmp_path / "out", "--executor", "ray", RAY_ADDRESS="127.0.0.1:9"
    )
    assert (code, out) == (1, "")
    assert "the Ray cluster 127.0.0.1:9 cannot be joined" in err
    assert err.count("\n") < 4


@pytest.mark.slow
def test_a_node_of_another_version_is_named(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun.write(tmp_path / "run")
    plan = run.work_plan()
    other = replace(plan, versions={**plan.versions, "numba": "0.1"})
    run.place.write(PLAN_FILE, other.to_bytes())
    nodes.join(monkeypatch)
    with pytest.raises(OutputError, match=r"on node \S+ \(127\.0\.0\.1\): was made with numba 0\.1"):
        list(RayExecutor().run(other, run.place, [0], SilentProgress()))


@pytest.mark.slow
def test_a_node_without_a_token_is_named(tmp_path: Path, hub: LocalHub, logged_in: str, repo_id: str) -> None:
    hub.create_repo(repo_id, private=True)
    for folder in write_run(tmp_path / "run").iterdir():
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=folder.name)
    recipe = write_recipe(tmp_path / "recipe.yaml", repo_id)
    with Nodes({"HF_TOKEN": "", "HF_HOME": str(tmp_path / "theirs")}) as nodes:
        merging = ("merge", recipe, "--out", tmp_path / "out", "--executor", "ray")
        code, _, err = done(*merging, **nodes.environment)
        logs = b"".join(path.read_bytes() for path in nodes.folder.rglob("*") if path.is_file())
    assert code == 1
    assert "on node " in err
    assert "HF_TOKEN where `ray start` runs there" in " ".join(err.split())
    assert logged_in.encode() not in logs
