"""A scan that travels is the local one to the last byte, goes on after a stop, and meets the same errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from command_lines import run_main
from harness import Lines
from safetensors.torch import load_file
from scan_runs import make_run, write_checkpoint

from hubextrap import ReadingOptions, api
from hubextrap.api.elsewhere import scan_by
from hubextrap.errors import CorruptFile, HubExtrapError, NonFinite, OutputError, SourceError
from hubextrap.executors.local import LocalExecutor
from hubextrap.localhub import LocalHub
from hubextrap.opening import Run
from hubextrap.progress import Progress
from hubextrap.trajectory import find_trajectory
from hubextrap.work.kinds import Work, load_work, work_from_bytes
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.records import Record, Records
from hubextrap.work.scanning import ScanWork

STEPS = (0, 10, 30)
NAMES = [f"layer.{number}.weight" for number in range(6)]
ELSEWHERE = ReadingOptions(executor="ray")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Six tensors, of which one is longer than a block."""
    shapes = dict.fromkeys(NAMES, (300, 20)) | {"layer.3.weight": (20_000,)}
    return make_run(tmp_path / "run", steps=STEPS, shapes=shapes)


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the smaller tensors go into a unit."""
    monkeypatch.setattr("hubextrap.work.scanning.LEAST_BYTES", 2 * len(STEPS) * 300 * 20 * 4)
    monkeypatch.setattr("hubextrap.work.scanning.UNITS", 10**9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the plans of scans lie."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hubextrap" / "work"


class Backwards(LocalExecutor):
    """Ends its units in the other order, at most some of them."""

    def __init__(self, at_most: int = 10**9) -> None:
        self.done: list[int] = []
        self._at_most = at_most

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        for unit in reversed(units):
            if len(self.done) == self._at_most:
                raise KeyboardInterrupt
            yield from super().run(plan, place, [unit], progress)
            self.done.append(unit)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Backwards:
    """What ``executor="ray"`` stands for in a test."""
    found = Backwards()
    monkeypatch.setattr("hubextrap.api.elsewhere.executor_named", lambda _: found)
    return found


def plan_of(run: str | Path, place: Place) -> ScanWork:
    """The plan of a scan in its place."""
    with Run.of(find_trajectory(str(run))) as opened:
        checkpoints = opened.trajectory.checkpoints
        return ScanWork.of(checkpoints, opened.sources, opened.scan_plan, {"pin": "1"}, tied=False).save(
            place
        )


def test_the_same_bytes_as_here(run: Path, tmp_path: Path, executor: Backwards, home: Path) -> None:
    trajectory = find_trajectory(str(run))
    api.scan(trajectory, out=tmp_path / "here", reference_share=0.01)
    api.scan(trajectory, out=tmp_path / "there", reference_share=0.01, settings=ELSEWHERE)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert executor.done == [3, 2, 1, 0]  # layers 0 and 1; 2; 3 by itself; 4 and 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "hf", "run", "there"]
    assert list(home.iterdir()) == []


def test_unusual_tensors(tmp_path: Path, executor: Backwards, home: Path) -> None:
    """Tied copies, which lie in another unit's run, dtypes that differ, and integers."""
    generator = torch.Generator().manual_seed(1)
    for step in STEPS:
        embeddings = torch.randn((300, 20), generator=generator)
        state = {
            "lm_head.weight": embeddings.clone(),
            "model.embed_tokens.weight": embeddings,
            "model.mixed": torch.randn(9_000, generator=generator).to(
                torch.bfloat16 if step else torch.float32
            ),
            "model.places": torch.arange(7),
            "model.wide": torch.randn(6_000, generator=generator).double(),
        }
        if step == 10:
            del state["lm_head.weight"]
        write_checkpoint(tmp_path / "run" / f"step_{step}", state)
        (tmp_path / "run" / f"step_{step}" / "config.json").write_text('{"tie_word_embeddings": true}')
    trajectory = find_trajectory(str(tmp_path / "run"))
    for settings in (ReadingOptions(), ELSEWHERE):
        api.scan(trajectory, out=tmp_path / settings.executor, settings=settings)
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()
    assert len(executor.done) == 3


def test_the_commands(run: Path, tmp_path: Path, executor: Backwards, home: Path) -> None:
    for where in ("local", "ray"):
        ended = run_main("scan", str(run), "--out", str(tmp_path / where), "--executor", where, "--quiet")
        assert ended.code == 0, ended.err
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()
    assert executor.done == [3, 2, 1, 0]
    executor.done.clear()
    assert run_main("backtest", str(run), "--executor", "ray", "--quiet").code == 0
    assert executor.done == [3, 2, 1, 0]
    assert "is not one of local, ray" in run_main("scan", str(run), "--executor", "here").err


def test_what_is_read_for_coefficients_is_read_there(
    run: Path, executor: Backwards, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.of(find_trajectory(str(run))) as opened:
        expected = opened.gram_table("why").gram
    monkeypatch.setattr("hubextrap.engine.scan.scan_trajectory", lambda *_, **__: pytest.fail("read here"))
    with Run.of(find_trajectory(str(run)), ELSEWHERE) as opened:
        assert opened.gram_table("why").gram.tobytes() == expected.tobytes()
    assert executor.done


def test_units_share_tensors_out_and_a_tensor_is_never_split(run: Path, tmp_path: Path) -> None:
    plan = plan_of(run, FolderPlace(tmp_path / "place"))
    assert [[one.name for one in plan.run(unit)] for unit in plan.free_units] == [
        NAMES[:2], [NAMES[2]], [NAMES[3]], NAMES[4:]
    ]  # fmt: skip
    assert plan.labels[0] == "layer.0.weight and 1 more"
    assert sum(map(plan.bytes_of, range(plan.units))) == sum(one.bytes_read for one in plan.scan.tensors)
    assert plan.one_thread().peak_memory < plan.peak_memory
    assert (plan.threads, plan.one_thread().threads, plan.gpus) == (2, 1, 0)


def test_a_record_is_no_larger_than_is_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubextrap.work.scanning.MOST_RECORD", 1)
    plan = plan_of(run, FolderPlace(tmp_path / "place"))
    assert plan.starts == tuple(range(6))


def test_a_plan_is_read_back_and_no_other_kind(run: Path, tmp_path: Path) -> None:
    from hubextrap.work.plan import WorkPlan

    place = FolderPlace(tmp_path / "place")
    plan = plan_of(run, place)
    found = load_work(place)
    assert isinstance(found, ScanWork)
    assert found == plan
    assert found.to_bytes() == plan.to_bytes()
    with pytest.raises(CorruptFile, match="it is one of 'scan'"):
        WorkPlan.load(place)
    data = plan.to_bytes()
    with pytest.raises(CorruptFile, match="sha256"):
        work_from_bytes(data.replace(b'"tied": false', b'"tied": true'), "plan")


def test_it_goes_on_where_it_was_stopped(run: Path, tmp_path: Path, home: Path, lines: Lines) -> None:
    trajectory = find_trajectory(str(run))
    api.scan(trajectory, out=tmp_path / "here")
    with Run.of(trajectory, ELSEWHERE, progress=lines) as opened:
        with pytest.raises(KeyboardInterrupt):
            scan_by(Backwards(at_most=2), opened, opened.scan_plan, None)
        second = Backwards()
        found = scan_by(second, opened, opened.scan_plan, None)
    assert second.done == [1, 0]
    assert "resuming: 2 of 4 units are there" in lines.said
    found.save(tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert list(home.iterdir()) == []


def test_a_stop_before_the_first_unit_leaves_nothing(run: Path, home: Path) -> None:
    with Run.of(find_trajectory(str(run)), ELSEWHERE) as opened, pytest.raises(KeyboardInterrupt):
        scan_by(Backwards(at_most=0), opened, opened.scan_plan, None)
    assert list(home.iterdir()) == []


def test_checkpoints_that_changed_start_over(run: Path, home: Path) -> None:
    with Run.of(find_trajectory(str(run)), ELSEWHERE) as opened, pytest.raises(KeyboardInterrupt):
        scan_by(Backwards(at_most=2), opened, opened.scan_plan, None)
    state = load_file(run / "step_10" / "model.safetensors")
    write_checkpoint(run / "step_10", {name: weights + 1 for name, weights in state.items()})
    with Run.of(find_trajectory(str(run)), ELSEWHERE) as opened:
        again = Backwards()
        scan_by(again, opened, opened.scan_plan, None)
    assert again.done == [3, 2, 1, 0]


def test_a_worker_refuses_a_checkpoint_that_changed(run: Path, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    plan = plan_of(run, place)
    state = load_file(run / "step_10" / "model.safetensors")
    write_checkpoint(run / "step_10", {name: weights + 1 for name, weights in state.items()})
    with pytest.raises(SourceError, match="changed since the plan was made"):
        list(LocalExecutor().run(plan, place, [0], Lines()))
    assert Records(place, plan.digest).failed() == {0}


@pytest.mark.parametrize("tensor", [0, 5])
def test_errors_are_the_local_ones(run: Path, executor: Backwards, home: Path, tensor: int) -> None:
    state = load_file(run / "step_10" / "model.safetensors")
    state[NAMES[tensor]].view(-1)[7] = torch.nan
    write_checkpoint(run / "step_10", state)
    caught = []
    for settings in (ReadingOptions(), ELSEWHERE):
        with pytest.raises(NonFinite) as error:
            api.scan(find_trajectory(str(run)), settings=settings)
        caught.append((str(error.value), error.value.tensor, error.value.step))
    assert caught[0] == caught[1]
    assert list(home.iterdir()) == []


def test_records_of_something_else_are_refused(run: Path, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    plan = plan_of(run, place)
    records = {record.unit: record for record in LocalExecutor().run(plan, place, range(4), Lines())}
    with pytest.raises(CorruptFile, match=r"unit 3 .*other tensors"):
        plan.found(records | {3: records[0]})
    with pytest.raises(CorruptFile, match="none of a scan's"):
        plan.found(records | {3: Record(3, plan.digest, {"tensors": [{}]})})
    with pytest.raises(OutputError, match="unit 9: the plan has 4"):
        list(LocalExecutor().run(plan, place, [9], Lines()))


@pytest.mark.slow
def test_a_file_that_several_units_read_is_compared_with_the_hub(
    run: Path, tmp_path: Path, hub: LocalHub, repo_id: str, executor: Backwards, home: Path
) -> None:
    hub.create_repo(repo_id)
    for folder in run.iterdir():
        files: dict[str, bytes | Path] = {
            "config.json": b"{}", "model.safetensors": folder / "model.safetensors"
        }  # fmt: skip
        hub.commit(repo_id, files, revision=folder.name)
    trajectory = find_trajectory(repo_id)
    api.scan(trajectory, out=tmp_path / "here")
    api.scan(trajectory, out=tmp_path / "there", settings=ELSEWHERE)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert executor.done == [3, 2, 1, 0, 6, 5, 4]

    place = FolderPlace(tmp_path / "place")
    plan = plan_of(repo_id, place)
    assert plan.labels[4:] == tuple(f"model.safetensors of step {step}" for step in STEPS)
    assert plan.needs(5) == (0, 1, 2, 3)
    with pytest.raises(HubExtrapError, match="do unit 0 first"):
        list(LocalExecutor().run(plan, place, [5], Lines()))
    records = {record.unit: record for record in LocalExecutor().run(plan, place, range(4), Lines())}
    left = json.loads(json.dumps(records[0].content["left"]))
    left[0][3] = "00" * 16  # as if a worker had read other bytes
    forged = Record(0, plan.digest, {**records[0].content, "left": left})
    Records(place, plan.digest).put(forged)
    with pytest.raises(CorruptFile, match="changed between two reads"):
        list(LocalExecutor().run(plan, place, [4], Lines()))


@pytest.mark.slow
def test_a_worker_may_be_killed_at_any_moment(run: Path, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "place")
    plan = plan_of(run, place)
    expected = plan.found({one.unit: one for one in LocalExecutor().run(plan, place, range(4), Lines())})
    for file in (tmp_path / "place" / "done").iterdir():
        file.unlink()
    command = [sys.executable, "-m", "hubextrap", "worker", str(tmp_path / "place"), "--quiet"]
    for seconds in (0.5, 1.0, 1.5):
        worker = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            worker.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            worker.wait(timeout=30)
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    kept = Records(place, plan.digest)
    records = {unit: record for unit in range(4) if (record := kept.get(unit)) is not None}
    found = plan.found(records)
    assert {name: one.as_json() for name, one in found.items()} == {
        name: one.as_json() for name, one in expected.items()
    }
