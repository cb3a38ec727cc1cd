"""A branch is asked for once a command: what it holds later has no say."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import Lines

from hubextrap.api.against import real_checkpoint
from hubextrap.errors import ReferenceNotFound, StepError
from hubextrap.localhub import LocalHub
from hubextrap.localhub.faults import Fault
from hubextrap.trajectory import (
    Pins,
    find_series,
    find_trajectory,
    pin_checkpoints,
    resolve_checkpoint,
)


def model(weights: str) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": weights.encode()}


@pytest.fixture
def run(hub: LocalHub, repo_id: str) -> str:
    """Steps 0, 100 and 200 as branches, and in subfolders of main."""
    hub.create_repo(repo_id)
    for step in (0, 100, 200):
        hub.commit(repo_id, model(f"{step}"), revision=f"step_{step}")
        hub.commit(repo_id, {f"step_{step}/{name}": data for name, data in model(f"{step}").items()})
    hub.requests.clear()
    return repo_id


def test_checkpoints_listed_one_by_one_are_of_one_commit(
    hub: LocalHub, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """main moves on after the first answer about it."""
    strike, lock = hub.faults.strike, threading.Lock()

    def strike_and_commit(method: str, path: str) -> Fault | None:
        with lock:
            if any("/revision/main" in request.path for request in hub.requests):
                hub.commit(run, {"notes.txt": str(len(hub.requests)).encode()})
        return strike(method, path)

    monkeypatch.setattr(hub.faults, "strike", strike_and_commit)
    found = pin_checkpoints([(f"{run}@main:step_{step}", step) for step in (0, 100, 200)])
    assert len({checkpoint.commit for checkpoint in found.checkpoints}) == 1
    assert sum("/revision/" in request.path for request in hub.requests) == 1


def test_what_is_pinned_stays_however_it_is_asked_for(hub: LocalHub, run: str) -> None:
    pins = Pins()
    first = resolve_checkpoint(f"{run}@step_200", pins=pins)
    moved = hub.commit(run, model("anew"), revision="step_200")
    hub.commit(run, model("later"), revision="step_300")
    trajectory = find_trajectory(run, series="branches", pins=pins)
    assert trajectory.last.step == 300
    assert trajectory.checkpoints[-2].commit == first.commit != moved
    hub.commit(run, model("even later"), revision="step_300")
    hub.commit(run, model("latest"), revision="step_400")
    assert resolve_checkpoint(f"{run}@step_300", pins=pins).commit == trajectory.last.commit
    series = find_series(run, pins=pins)
    assert [c.step for c in series[0].checkpoints] == [0, 100, 200, 300]
    assert resolve_checkpoint(f"{run}@step_200").commit == moved
    assert sum(request.path.endswith("/refs") for request in hub.requests) == 1


def test_many_threads_ask_once(hub: LocalHub, run: str) -> None:
    pins = Pins()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: pins.commit_of(run, "step_100", "it"), range(32)))
    assert len(found) == len(hub.requests) == 1


def test_a_refusal_is_not_remembered(hub: LocalHub, run: str) -> None:
    pins = Pins()
    with pytest.raises(ReferenceNotFound):
        pins.commit_of(run, "step_300", "it")
    commit = hub.commit(run, model("300"), revision="step_300")
    assert pins.commit_of(run, "step_300", "it") == commit


@pytest.mark.parametrize("series", ["branches", "subfolders"])
def test_the_real_checkpoint_is_one_of_those_that_were_there(
    hub: LocalHub, run: str, series: str, lines: Lines
) -> None:
    trajectory = find_trajectory(run, series=series, max_step=100, progress=lines)
    name = trajectory.last.name
    hub.commit(run, model("300"), revision="step_300")
    hub.commit(run, {f"step_300/{name}": data for name, data in model("300").items()})
    hub.commit(run, model("anew"), revision="step_200")
    hub.requests.clear()
    real = real_checkpoint(trajectory, 200, run)
    assert real.step == 200
    assert real.name == name.replace("step_100", "step_200")
    assert real.size == len(b"200")
    assert real_checkpoint(trajectory, 100, run) is trajectory.last
    with pytest.raises(StepError, match=r"step 300 is not there; .* 0, 100, 200"):
        real_checkpoint(trajectory, 300, run)
    assert all("/tree/" in request.path for request in hub.requests)
