"""A run that grows is followed: what is new, replaced, gone or half there, and what is done for it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Lines, Warm
from huggingface_hub import HfApi
from trainers import left_behind, push, push_run

import hubextrap
from hubextrap import HubExtrapError, WatchLook
from hubextrap.errors import OutputError, RecipeError
from hubextrap.localhub import Fault, LocalHub
from hubextrap.scans import Scan
from hubextrap.watching import read_history

Checkpoint = Callable[..., Path]


def look(run: Any, out: Path, **more: Any) -> WatchLook:
    (found,) = hubextrap.watch(run, out, every=None, **more)
    return found


def recipe_of(tmp_path: Path, run: object, **watch: object) -> Path:
    file = tmp_path / "watch.yaml"
    file.write_text(yaml.safe_dump({"trajectory": {"repo": str(run)}, "watch": watch}))
    return file


@pytest.fixture
def run(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    """Five checkpoints in a folder."""
    for step in (0, 10, 20, 30, 40):
        checkpoint(tmp_path / "run", step)
    return tmp_path / "run"


@pytest.mark.slow
def test_history_is_taken_together_and_what_comes_later_one_by_one(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out"
    first = look(run, out)
    assert first.steps == (0, 10, 20, 30, 40)
    assert [one.step for one in first.taken] == [40]
    assert first.hindsight is not None
    assert first.hindsight.rows[0].found_error is None
    assert look(run, out).steps == ()  # nothing new
    for step in (60, 50):  # in whatever order they were written
        checkpoint(run, step)
    second = look(run, out)
    assert [one.step for one in second.taken] == [50, 60]
    assert second.hindsight is not None
    rows = {row.said.last_step: row for row in second.hindsight.rows}
    assert rows[60].found_step is None
    assert rows[40].found_error is not None
    backtest = hubextrap.backtest(Scan.load(out / "run.scan.safetensors"))
    found = {(row.method, row.last_step, row.target_step): row for row in backtest.rows}
    for step in (40, 50):
        row = rows[step]
        assert row.found_step is not None
        real = found[row.said.method, step, row.found_step]
        assert (row.found_error, row.expected_there) == (real.error, real.expected_error)
    assert "In hindsight" in (out / "index.html").read_text()


@pytest.mark.slow
def test_when_checkpoints_are_seen_makes_no_difference(tmp_path: Path, checkpoint: Checkpoint) -> None:
    run, steps = tmp_path / "run", (0, 10, 20, 30, 40, 50)
    file = recipe_of(tmp_path, run, predict={"horizon": 0.5}, since=20)
    for step in steps:
        checkpoint(run, step)
        if step:
            look(file, tmp_path / "one-by-one")
    look(file, tmp_path / "at-once")
    assert left_behind(tmp_path / "one-by-one") == left_behind(tmp_path / "at-once")
    assert (tmp_path / "at-once" / "predictions" / "from_50" / "model.safetensors").is_file()


@pytest.mark.slow
def test_too_few_checkpoints_are_no_error(tmp_path: Path, checkpoint: Checkpoint, lines: Lines) -> None:
    (tmp_path / "run").mkdir()
    file, out = recipe_of(tmp_path, tmp_path / "run", predict=True), tmp_path / "out"
    assert look(file, out, progress=lines).said == ("no checkpoint is there yet",)
    assert [
        line for line in lines.said if "no checkpoints found" in line
    ]  # and why: it may be the wrong place
    checkpoint(tmp_path / "run", 0)
    assert "need two checkpoints" in look(file, out).said[-1]
    checkpoint(tmp_path / "run", 10)
    taken = look(file, out).taken
    assert [one.step for one in taken] == [0, 10]
    assert all(one.made is None and one.reason for one in taken)


@pytest.mark.slow
def test_targets_that_cannot_be_are_said(run: Path, tmp_path: Path) -> None:
    for number, (target, why) in enumerate(
        [({"to": 40}, "step 40 is reached"), ({"to": 9999}, "beyond all that the past can rehearse")]
    ):
        found = look(recipe_of(tmp_path, run, predict=target), tmp_path / f"out-{number}")
        assert why in found.taken[0].reason
        assert found.taken[0].made is None


@pytest.mark.slow
def test_command_gets_what_happened_and_its_failure_is_on_record(
    run: Path, tmp_path: Path, checkpoint: Checkpoint, lines: Lines
) -> None:
    said = tmp_path / "said.json"
    code = f"import sys; open({str(said)!r}, 'w').write(sys.stdin.read()); sys.exit(3)"
    file = recipe_of(tmp_path, run, command=[sys.executable, "-c", code], every=2)
    out = tmp_path / "out"
    found = look(file, out, progress=lines)
    assert [(one.step, one.ended) for one in found.ran] == [(40, "exit code 3")]
    happened = json.loads(said.read_text())
    assert happened["step"] == 40
    assert happened["said"]["method"]
    assert Path(happened["page"]).is_file()
    assert happened["verdict"]["level"] in ("good", "care", "bad", "unknown")
    assert any("exit code 3" in line for line in lines.said)
    for step in (50, 60):
        checkpoint(run, step)
    assert [one.step for one in look(file, out).ran] == [60]  # every other one


@pytest.mark.slow
def test_a_command_that_is_not_there_names_no_log(run: Path, tmp_path: Path, lines: Lines) -> None:
    out = tmp_path / "out"
    look(recipe_of(tmp_path, run, command="./not-there.sh"), out, progress=lines)
    assert not (out / "command.log").exists()
    (told,) = (line for line in lines.said if "a program was not found" in line)
    assert "command.log" not in told


@pytest.mark.slow
def test_command_that_takes_too_long_is_ended(run: Path, tmp_path: Path) -> None:
    file = recipe_of(
        tmp_path, run, command=[sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5
    )
    began = time.monotonic()
    found = look(file, tmp_path / "out")
    assert found.ran[0].ended == "no end within 0.5 s"
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_replaced_and_deleted_checkpoints_are_told_and_marked(
    run: Path, tmp_path: Path, checkpoint: Checkpoint, lines: Lines
) -> None:
    out = tmp_path / "out"
    look(run, out)
    before = Scan.load(out / "run.scan.safetensors").gram_table.gram
    checkpoint(run, 20, seed=5)
    found = look(run, out, progress=lines)
    assert any("step 20 was replaced" in line for line in found.said)
    assert any("what was said at step 40 is marked" in line for line in lines.said)
    assert found.hindsight is not None
    assert found.hindsight.rows[0].replaced == (20,)
    assert (Scan.load(out / "run.scan.safetensors").gram_table.gram != before).any()
    assert "replaced since" in (out / "index.html").read_text()
    shutil.rmtree(run / "step_20")
    found = look(run, out, progress=lines)
    assert any("step 20 is gone" in line for line in found.said)
    assert found.steps == (0, 10, 30, 40)
    assert Scan.load(out / "run.scan.safetensors").steps == (0, 10, 30, 40)
    assert read_history(out).gone == {20}


@pytest.mark.slow
def test_half_pushed_checkpoint_is_waited_for(
    hub: LocalHub, repo_id: str, logged_in: str, tmp_path: Path, run: Path, checkpoint: Checkpoint
) -> None:
    api, out = push_run(hub, logged_in, repo_id, run, (0, 10, 20, 30)), tmp_path / "out"
    assert look(repo_id, out).steps == (0, 10, 20, 30)
    folder = checkpoint(tmp_path / "run", 40)
    push(api, repo_id, folder, 40, weights=False)
    assert look(repo_id, out).taken == ()
    push(api, repo_id, folder, 40)
    assert [one.step for one in look(repo_id, out).taken] == [40]


@pytest.mark.slow
def test_force_pushed_branch_is_read_again(
    hub: LocalHub, repo_id: str, logged_in: str, tmp_path: Path, run: Path, checkpoint: Checkpoint
) -> None:
    api, out = push_run(hub, logged_in, repo_id, run, (0, 10, 20, 30)), tmp_path / "out"
    look(repo_id, out)
    hub.requests.clear()
    assert look(repo_id, out).steps == ()
    assert len(hub.requests) == 1  # the one conditional request
    api.delete_branch(repo_id, branch="step_10")
    push(api, repo_id, checkpoint(tmp_path / "other", 10, seed=3), 10)
    found = look(repo_id, out)
    assert any("step 10 was replaced" in line for line in found.said)
    assert found.hindsight is not None
    assert found.hindsight.rows[0].replaced == (10,)
    api.delete_branch(repo_id, branch="step_20")
    assert look(repo_id, out).steps == (0, 10, 30)


@pytest.mark.slow
def test_prediction_that_was_pushed_and_not_recorded_is_not_pushed_again(
    hub: LocalHub, repo_id: str, logged_in: str, tmp_path: Path, run: Path
) -> None:
    target = {"repo": repo_id, "revision": "from_{last_step}"}
    file, out = recipe_of(tmp_path, run, predict={"ahead": 10}, push=target), tmp_path / "out"
    first = look(file, out)
    api = HfApi(token=logged_in)
    commits = [one.commit_id for one in api.list_repo_commits(repo_id, revision="from_40")]
    history = out / "history.jsonl"
    history.write_bytes(
        b"".join(line for line in history.read_bytes().splitlines(True) if b"taken" not in line)
    )
    (out / "state.json").unlink()
    again = look(file, out)
    assert again.taken == first.taken
    assert commits == [one.commit_id for one in api.list_repo_commits(repo_id, revision="from_40")]


@pytest.mark.slow
def test_hub_that_fails_for_a_while_is_waited_out(
    hub: LocalHub, repo_id: str, token: str, tmp_path: Path, run: Path, checkpoint: Checkpoint, warm: Warm
) -> None:
    api, out = push_run(hub, token, repo_id, run, (0, 10, 20, 30)), tmp_path / "out"
    pid = warm.start("watch", repo_id, "--out", out, "--every", "1s")
    wait_for(lambda: 30 in read_history(out).taken)
    for status in (503, 429, 500):
        hub.faults.add(Fault(f"/api/models/{repo_id}/refs", method="GET", status=status))
    push(api, repo_id, checkpoint(tmp_path / "run", 40), 40)
    wait_for(lambda: 40 in read_history(out).taken)
    assert not hub.faults.pending()
    ended = warm.end(pid, after=0.0, sign=signal.SIGINT)
    assert ended.code == 130, ended.output


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_at_once(
    run: Path, tmp_path: Path, warm: Warm, sign: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    pid = warm.start("watch", run, "--out", out, "--every", "1h")
    wait_for(lambda: (out / "state.json").exists())
    began = time.monotonic()
    ended = warm.end(pid, after=0.0, sign=sign)
    assert (ended.code, time.monotonic() - began < 1.2) == (code, True), ended.output
    assert look(run, out).steps == ()  # what was done is kept


@pytest.mark.slow
def test_second_watcher_is_refused(run: Path, tmp_path: Path, warm: Warm) -> None:
    out = tmp_path / "out"
    pid = warm.start("watch", run, "--out", out, "--every", "1h")
    wait_for(lambda: (out / "state.json").exists())
    with pytest.raises(OutputError, match="another run is writing it"):
        look(run, out)
    warm.end(pid, after=0.0)


@pytest.mark.slow
def test_folder_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    look(run, out)
    with pytest.raises(RecipeError, match="another run is watched in it"):
        look(tmp_path, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OutputError, match="holds no watched run"):
        look(run, tmp_path / "mine")


def test_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HubExtrapError, match="no such local folder"):
        look(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.slow
def test_scan_that_a_kill_kept_from_its_name_is_no_hindrance(
    run: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out"
    look(run, out, sample="exact")
    shutil.copy(out / "run.scan.safetensors", out / "next.scan.safetensors")
    checkpoint(run, 50)
    assert look(run, out).steps[-1] == 50
    assert not (out / "next.scan.safetensors").exists()
