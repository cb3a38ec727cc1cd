"""Looks at a run that cost a conditional request each, at a polite pace, against the loopback Hub."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import Lines
from huggingface_hub import CommitOperationAdd, HfApi

from hubextrap import polling
from hubextrap.errors import AccessDenied, ReferenceNotFound, TrajectoryError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.polling import FolderPlace, Poller, place_of_run
from hubextrap.trajectory import find_trajectory

FILES = {"config.json": b"{}", "model.safetensors": b"1"}


class Waits(threading.Event):
    """Remembers how long it was waited for instead of waiting, and is set after so many waits.

    No time passes but that, by the clock that the poller reads.
    """

    def __init__(self, most: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.most, self.seconds, self.now = most, [], 1000.0  # type: ignore[var-annotated]
        patch.setattr(polling, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, timeout: float | None = None) -> bool:
        if len(self.seconds) == self.most:
            return True
        self.seconds.append(timeout)
        self.now += timeout or 0.0
        return False


def in_folder(step: int) -> dict[str, bytes]:
    return {f"step_{step}/{name}": content for name, content in FILES.items()}


def push(hub: LocalHub, repo: str, layout: str, step: int) -> None:
    """A checkpoint of a run in this layout."""
    if layout == "branches":
        hub.commit(repo, FILES, revision=f"step_{step}")
    elif layout == "tags":
        hub.commit(repo, FILES)
        hub.tag(repo, f"step_{step}")
    elif layout == "subfolders":
        hub.commit(repo, in_folder(step))
    elif layout == "commits":
        hub.commit(repo, FILES | {"state.json": b"%d" % step}, message=f"Training in progress, step {step}")
    else:
        hub.create_repo(f"{repo}-step-{step}")
        hub.commit(f"{repo}-step-{step}", FILES)


@pytest.mark.parametrize("layout", ["branches", "tags", "subfolders", "commits", "repos"])
def test_an_unchanged_run_costs_a_request_a_look(hub: LocalHub, repo_id: str, layout: str) -> None:
    hub.create_repo(repo_id)
    for step in (100, 200):
        push(hub, repo_id, layout, step)
    whole = find_trajectory(repo_id).whole
    assert whole is not None
    assert whole.layout == layout
    place = place_of_run(repo_id, layout)
    hub.requests.clear()
    poller = Poller(place)
    assert [poller.look() for _ in range(5)] == [True, False, False, False, False]
    assert [request.status for request in hub.requests] == [200, 304, 304, 304, 304]
    assert len({request.path for request in hub.requests}) == 1

    again = Poller(place_of_run(repo_id, layout), json.loads(json.dumps(poller.seen)))  # started anew
    assert not again.look()
    assert hub.requests[-1].status == 304
    push(hub, repo_id, layout, 300)
    assert again.look()
    assert not again.look()
    assert [request.status for request in hub.requests[-2:]] == [200, 304]


@pytest.mark.parametrize("layout", ["subfolders", "commits"])
def test_other_branches_are_no_change_where_the_head_counts(hub: LocalHub, repo_id: str, layout: str) -> None:
    hub.create_repo(repo_id)
    push(hub, repo_id, layout, 100)
    poller = Poller(place_of_run(repo_id, layout))
    poller.look()
    hub.commit(repo_id, FILES, revision="elsewhere")
    assert not poller.look()
    assert hub.requests[-1].status == 200
    assert not poller.look()
    assert hub.requests[-1].status == 304


def test_a_revision_that_is_named(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    commit = hub.commit(repo_id, in_folder(100), revision="run/a")
    poller = Poller(place_of_run(f"{repo_id}@run/a"))
    poller.look()
    hub.commit(repo_id, FILES)
    assert not poller.look()
    hub.commit(repo_id, in_folder(200), revision="run/a")
    assert poller.look()
    with pytest.raises(TrajectoryError, match=f"a commit never changes.*leave out @{commit}"):
        place_of_run(f"{repo_id}@{commit}")
    with pytest.raises(ReferenceNotFound, match=f"no branch or tag 'no' in {repo_id}"):
        Poller(place_of_run(f"{repo_id}@no")).look()


def test_a_pull_request(hub: LocalHub, repo_id: str, token: str) -> None:
    hub.create_repo(repo_id)
    first = CommitOperationAdd("config.json", b"{}")
    HfApi(token=token).create_commit(repo_id, [first], commit_message="a run", create_pr=True)
    poller = Poller(place_of_run(f"{repo_id}@refs/pr/1"))
    assert [poller.look(), poller.look()] == [True, False]
    hub.commit(repo_id, in_folder(100), revision="refs/pr/1")
    assert poller.look()


def test_a_server_without_etags(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(r"/refs", headers={"ETag": ""}, count=9))
    poller = Poller(place_of_run(repo_id, "branches"))
    assert [poller.look() for _ in range(3)] == [True, False, False]
    assert [request.headers["If-None-Match"] for request in hub.requests] == [None] * 3
    push(hub, repo_id, "branches", 100)
    assert poller.look()


def test_each_page_is_asked_for_only_if_it_changed(
    hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    for size in (1, 2, 3):
        hub.commit(repo_id, {"file": b"1" * size})
    monkeypatch.setattr(hub, "page_size", 2)
    place = polling.HubPlace(f"models/{repo_id}/commits/main", repo_id, lambda value: value)
    poller = Poller(place)
    assert [poller.look(), poller.look()] == [True, False]
    assert [request.status for request in hub.requests] == [200, 200, 304, 304]
    hub.commit(repo_id, {"file": b"1"})
    assert [poller.look(), poller.look()] == [True, False]


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        "x",
        {"place": "elsewhere"},
        {"place": "PATH", "pages": 1},
        {"place": "PATH", "pages": [{"etag": 1}]},
        {"place": "PATH", "pages": [{"address": "x", "etag": '"x"', "hash": "x", "next": None}]},
        {"place": "PATH", "pages": [{"address": "x", "etag": [], "hash": "x", "next": "x"}]},
    ],
)
def test_a_state_of_something_else_counts_as_none(hub: LocalHub, repo_id: str, kept: object) -> None:
    hub.create_repo(repo_id)
    if isinstance(kept, dict) and kept["place"] == "PATH":
        kept["place"] = f"models/{repo_id}/refs"
    poller = Poller(place_of_run(repo_id, "branches"), kept)
    assert poller.look()
    assert hub.requests[-1].headers["If-None-Match"] is None


def test_the_interval_doubles_and_begins_anew(
    hub: LocalHub, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    waits = Waits(7, monkeypatch)
    poller = Poller(place_of_run(repo_id, "branches"), every=10, longest=60, stop=waits)
    assert poller.wait()
    assert not poller.wait()
    assert waits.seconds == [0, 10, 10, 20, 40, 60, 60]
    push(hub, repo_id, "branches", 100)
    waits.most = 10
    assert poller.wait()
    assert not poller.wait()
    assert waits.seconds[7:] == [60, 10, 10]


def test_what_passes_is_told_once_and_waited_out(
    hub: LocalHub, repo_id: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    waits = Waits(5, monkeypatch)
    hub.faults.add(Fault("/refs", status=503, headers={"Retry-After": "45"}))
    hub.faults.add(Fault("/refs", drop=True))
    hub.faults.add(Fault("/refs", truncate=3))
    poller = Poller(place_of_run(repo_id, "branches"), every=10, stop=waits, progress=lines)
    assert poller.wait()
    assert waits.seconds == [0, 45, 20, 40]
    assert len(lines.said) == 2
    assert lines.said[0].startswith(f"warning: {repo_id}: HfHubHTTPError: ")
    assert lines.said[0].endswith("; trying again until it answers")
    assert lines.said[1] == f"{repo_id}: answers again"


def test_a_page_in_place_of_the_hubs_answer_passes(
    hub: LocalHub, repo_id: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.commit(repo_id, {"page.html": b"<html>log in</html>"})
    hub.faults.add(
        Fault("/refs", status=307, headers={"Location": f"/{repo_id}/resolve/main/page.html"}, count=1)
    )
    waits = Waits(3, monkeypatch)
    poller = Poller(place_of_run(repo_id, "branches"), every=10, stop=waits, progress=lines)
    assert poller.wait()
    assert "not valid JSON" in lines.said[0]


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault("/refs", headers={"RateLimit": '"api";r=0;t=250'}, count=2), 250),
        (Fault("/refs", headers={"RateLimit": '"api";r=3;t=250'}, count=2), 10),
        (Fault("/refs", headers={"RateLimit-Reset": "250"}, count=2), 10),
        (Fault("/refs", headers={"Retry-After": "70"}, count=2), 70),
        (Fault("/refs", headers={"Retry-After": "9999999"}, count=2), 86_400),
        (Fault("/refs", status=429, headers={"RateLimit": '"api";r=0;t=250'}, count=2), 250),
        (Fault("/refs", status=429, headers={"Retry-After": "4000"}, count=2), 4000),
    ],
)
def test_a_pause_that_the_server_asks_for(
    hub: LocalHub, repo_id: str, fault: Fault, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault(**fault.__dict__))
    waits = Waits(2, monkeypatch)
    poller = Poller(place_of_run(repo_id, "branches"), every=10, stop=waits)
    poller.wait()
    poller.wait()
    assert waits.seconds == [0, seconds]


def test_a_pause_of_days_is_an_error(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault("/refs", status=429, headers={"Retry-After": "86401"}))
    with pytest.raises(TrajectoryError, match="asked to wait 86401 s"):
        Poller(place_of_run(repo_id, "branches")).wait()


def test_one_look_tries_a_few_times(hub: LocalHub, repo_id: str) -> None:
    hub.create_repo(repo_id)
    hub.faults.add(Fault("/refs", status=503, count=2))
    assert Poller(place_of_run(repo_id, "branches")).look()
    hub.faults.add(Fault("/refs", status=503, count=99))
    with pytest.raises(TrajectoryError, match="the Hub answered 503"):
        Poller(place_of_run(repo_id, "branches")).look()


def test_a_place_that_is_gone_or_closed(
    hub: LocalHub, repo_id: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create_repo(repo_id, private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    poller = Poller(place_of_run(repo_id, "branches"))
    assert poller.wait()
    monkeypatch.setenv("HF_TOKEN", "")
    poller = Poller(place_of_run(repo_id, "branches"), poller.seen)
    with pytest.raises((ReferenceNotFound, AccessDenied), match="no such repo, or it is private"):
        poller.wait()


def folder_of(tmp_path: Path) -> Path:
    for step in (100, 200):
        (tmp_path / "run" / f"step_{step}").mkdir(parents=True)
        (tmp_path / "run" / f"step_{step}" / "model.safetensors").write_bytes(b"1")
    return tmp_path / "run"


def grown(run: Path) -> None:
    with (run / "step_200" / "model.safetensors").open("ab") as file:
        file.write(b"2")


def rewritten(run: Path) -> None:
    os.utime(run / "step_200" / "model.safetensors", ns=(1, 1))


def new(run: Path) -> None:
    (run / "step_300").mkdir()
    (run / "step_300" / "config.json").write_bytes(b"{}")


def removed(run: Path) -> None:
    (run / "step_100" / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [grown, rewritten, new, removed])
def test_a_folder(tmp_path: Path, change: Callable[[Path], None]) -> None:
    run = folder_of(tmp_path)
    poller = Poller(place_of_run(str(run), "folders"))
    assert [poller.look(), poller.look()] == [True, False]
    again = Poller(place_of_run(str(run), "folders"), json.loads(json.dumps(poller.seen)))
    assert not again.look()
    change(run)
    assert [again.look(), again.look()] == [True, False]


def test_what_is_written_beside_a_run_is_no_change_of_it(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    (run / "watched").mkdir()
    poller = Poller(place_of_run(str(run), "folders", apart=[run / "watched"]))
    poller.look()
    (run / "watched" / "index.html").write_text("page")
    (run / ".hidden").mkdir()
    (run / ".hidden" / "file").write_text("x")
    assert not poller.look()


def test_a_folder_that_is_gone_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder_of(tmp_path)
    monkeypatch.setattr(polling, "MOST_FILES", 2)
    poller = Poller(FolderPlace(run))
    assert poller.look()
    new(run)
    with pytest.raises(TrajectoryError, match="more than 2 files lie in it"):
        poller.look()
    with pytest.raises(ReferenceNotFound, match="no such folder any more"):
        Poller(FolderPlace(run / "no")).wait()


def test_another_thread_ends_a_wait_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    poller = Poller(FolderPlace(folder_of(tmp_path)), stop=stop)
    assert poller.wait()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    assert not poller.wait()
    assert time.monotonic() - began < 5


def test_a_signal_ends_a_wait_at_once(tmp_path: Path) -> None:
    poller = Poller(FolderPlace(folder_of(tmp_path)))
    assert poller.wait()

    def end(number: int, frame: object) -> None:  # as the command's handler of SIGTERM does
        raise SystemExit(128 + number)

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        poller.wait()

    before = signal.signal(signal.SIGALRM, end)
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5
