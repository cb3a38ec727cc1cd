"""A run under way: a second one is refused, signals end it so that it can go on."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import SHARDS, Ended, Warm

import hubextrap
from hubextrap.api.staging import push_place
from hubextrap.errors import OutputError
from hubextrap.localhub import Fault, LocalHub


def finished(journal: Path) -> int:
    """Shards that the journal names."""
    return max(0, len(journal.read_bytes().splitlines()) - 1) if journal.exists() else 0


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    """What the Hub waits for: a run is under way until it is stopped, however long the test takes to."""
    stopping = threading.Event()
    yield stopping
    stopping.set()


def stop(warm: Warm, pid: int, sign: signal.Signals, stopping: threading.Event) -> Ended:
    """Send the run a signal, and only then let the Hub go on."""
    os.kill(pid, sign)
    stopping.set()
    return warm.end(pid)


@pytest.fixture
def slow_sources(hub: LocalHub, stopping: threading.Event) -> None:
    """From the sixth shard on, bytes come once the run is stopped, and take half a second then.

    The headers of both checkpoints come at once.
    """
    for number in range(6, SHARDS + 1):
        hub.faults.add(Fault(rf"/resolve/.*model-{number:05}", "GET", count=2))
        hub.faults.add(Fault(rf"/resolve/.*model-{number:05}", "GET", delay=0.5, until=stopping, count=2))


@pytest.mark.slow
@pytest.mark.usefixtures("slow_sources")
@pytest.mark.parametrize(
    ("sign", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGKILL, -9, "")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_one_run_at_a_time_and_signals(
    sign: signal.Signals,
    code: int,
    word: str,
    stopping: threading.Event,
    warm: Warm,
    run_on_hub: str,
    run_folder: Path,
    recipe_file: Callable[..., Path],
    contents: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    recipe, out = recipe_file(run_on_hub), tmp_path / "out"
    pid = warm.start("merge", recipe, "--out", out)
    wait_for(lambda: finished(tmp_path / ".out.partial" / "journal-0.jsonl") >= 4)
    other = recipe_file(run_folder)  # whatever it makes
    with pytest.raises(OutputError) as refused:
        hubextrap.merge(hubextrap.load_recipe(other), out=out)
    assert str(refused.value) == (
        f"{out}: another run is writing it (process {pid}); wait for it to end, or stop it"
    )
    ended = stop(warm, pid, sign, stopping)
    assert ended.code == code, ended.output
    if word:
        assert word in ended.output
        kept = re.search(r"out: (\d+) finished shards kept; run the same command again", ended.output)
        assert kept
        assert 4 <= int(kept[1]) < SHARDS
        assert "Traceback" not in ended.output
    assert not out.exists()
    recipe = recipe_file(run_on_hub)
    resumed = warm.run("merge", recipe, "--out", out)
    assert resumed.code == 0
    assert "resuming: " in resumed.output
    hubextrap.merge(hubextrap.load_recipe(recipe), out=tmp_path / "unstopped")
    assert contents(out) == contents(tmp_path / "unstopped")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yaml", "unstopped"]


@pytest.mark.slow
def test_one_push_at_a_time(
    hub: LocalHub,
    stopping: threading.Event,
    warm: Warm,
    run_folder: Path,
    recipe_file: Callable[..., Path],
    repo_id: str,
    token: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    target = hubextrap.PushTarget.parse(f"{repo_id}@step_20")
    hub.faults.add(Fault(r"^/lfs/", "PUT", count=4))
    hub.faults.add(Fault(r"^/lfs/", "PUT", delay=0.2, until=stopping, count=4))
    recipe = recipe_file(run_folder)
    pid = warm.start("merge", recipe, "--push", target.name)
    wait_for(lambda: finished(push_place(target) / "journal-0.jsonl") >= 4)
    with pytest.raises(OutputError, match=rf"another run is writing it .*{pid}"):
        hubextrap.merge(hubextrap.load_recipe(recipe), push=[target])
    ended = stop(warm, pid, signal.SIGTERM, stopping)
    assert ended.code == 143, ended.output
    assert "finished shards kept; run the same command again to go on" in ended.output
    assert not list((push_place(target) / "scratch").iterdir())
    resumed = warm.run("merge", recipe, "--push", target.name, "--json", "-q")
    assert resumed.code == 0, resumed.output
    assert json.loads(resumed.output)[0]["step"] == 20
    assert not push_place(target).exists()
    assert warm.run("verify", target.name).code == 0
