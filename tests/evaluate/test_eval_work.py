"""Models measured by others: the same table to the last byte, what is measured stays, the same errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import run_main
from harness import Lines

import hubextrap
from hubextrap.api import MergeOptions, sweep
from hubextrap.errors import CorruptFile, EvaluationError, HubExtrapError, OutputError, SourceError
from hubextrap.evaluation import Answering, EvaluationOptions, Harness, TaskFile, evaluate
from hubextrap.executors.local import LocalExecutor
from hubextrap.executors.named import device_of
from hubextrap.localhub import LocalHub
from hubextrap.logits import Mixture
from hubextrap.progress import Progress
from hubextrap.recipe import parse_recipe
from hubextrap.trajectory import Checkpoint
from hubextrap.work.evaluating import EvalWork
from hubextrap.work.kinds import Work, load_work
from hubextrap.work.places import FolderPlace, Place
from hubextrap.work.records import Record


class Elsewhere(LocalExecutor):
    """Measures the last model first, at most some of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.at_most = 10**9

    def run(self, plan: Work, place: Place, units: Sequence[int], progress: Progress) -> Iterator[Record]:
        for unit in reversed(units):
            if len(self.done) == self.at_most:
                raise KeyboardInterrupt
            yield from super().run(plan, place, [unit], progress)
            self.done.append(plan.labels[unit])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the plans of evaluations lie."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hubextrap" / "work"


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """What ``executor="ray"`` stands for in a test; nothing is measured but by it."""
    found = Elsewhere()
    monkeypatch.setattr("hubextrap.api.elsewhere.executor_named", lambda _: found)
    return found


@pytest.fixture
def problems(trajectory: Path, tmp_path: Path) -> Path:
    """Ten problems in a file."""
    lines = (trajectory / "problems.jsonl").read_text().splitlines(keepends=True)[:10]
    (tmp_path / "some.jsonl").write_text("".join(lines))
    return tmp_path / "some.jsonl"


@pytest.fixture
def options(problems: Path) -> EvaluationOptions:
    return EvaluationOptions(task_files=[TaskFile(problems, "exact")], batch_size=10, device="cpu")


def checkpoint(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(step, None, "", None, str(folder / f"step_{step}"))


def rows_of(trajectory: Path) -> list[tuple[str, Checkpoint | Mixture]]:
    first, last = checkpoint(trajectory, 0), checkpoint(trajectory, 200)
    return [("base", first), ("prediction", Mixture((first, last), (-0.3, 1.3), 260)), ("last", last)]


@pytest.mark.slow
def test_the_same_table_as_here(
    trajectory: Path, problems: Path, options: EvaluationOptions, executor: Elsewhere, home: Path
) -> None:
    sampled = replace(options, answering=Answering(2), seed=3)
    here = evaluate(rows_of(trajectory), sampled)
    there = evaluate(rows_of(trajectory), sampled, executor="ray")
    assert there.model_dump_json() == here.model_dump_json()
    assert executor.done == ["last", "prediction", "base"]
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_the_command(trajectory: Path, problems: Path, tmp_path: Path, executor: Elsewhere) -> None:
    for where in ("local", "ray"):
        line = ("eval", "--no-against", trajectory / "step_0", trajectory / "step_200", "--device", "cpu")
        line += ("--task-file", problems, "--executor", where, "--output", tmp_path / where, "--quiet")
        ended = run_main(*line)
        assert ended.code == 0, ended.err
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()
    assert len(executor.done) == 2


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    trajectory: Path, options: EvaluationOptions, executor: Elsewhere, home: Path, lines: Lines
) -> None:
    rows, elsewhere = rows_of(trajectory), replace(options, executor="ray")
    executor.at_most = 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(rows, elsewhere)
    executor.at_most = 10**9
    there = evaluate(rows, elsewhere, progress=lines)
    assert executor.done == ["last", "prediction", "base"]
    assert "resuming: 1 of 3 models were measured before" in lines.said
    assert there.model_dump_json() == evaluate(rows, options).model_dump_json()
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_checkpoints_of_the_hub_and_every_step(
    trajectory: Path, hub: LocalHub, repo_id: str, options: EvaluationOptions, executor: Elsewhere
) -> None:
    hub.create_repo(repo_id)
    for step in (0, 40, 80, 200):
        folder = trajectory / f"step_{step}"
        hub.commit(repo_id, {file.name: file for file in folder.iterdir()}, revision=f"step_{step}")
    there = hubextrap.evaluate_steps(repo_id, options, executor="ray")
    assert executor.done == ["last", "step 80", "step 40", "step 0"]
    again = hubextrap.evaluate_steps(repo_id, options)  # measured before, whoever did
    assert len(executor.done) == 4
    assert there.as_dict() == again.as_dict()


@pytest.mark.slow
def test_a_sweep_measures_there(
    trajectory: Path, problems: Path, tmp_path: Path, executor: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step in (0, 80, 120, 200):
        shutil.copytree(trajectory / f"step_{step}", run / f"step_{step}")
    recipe = parse_recipe(
        json.dumps(
            {
                "trajectory": {"repo": str(run)},
                "merge_method": "least_squares",
                "parameters": {"target_step": [240, 300]},
                "evaluate": {"task_files": [str(problems)], "batch_size": 10, "against": ["last"]},
            }
        )
    )
    monkeypatch.setattr("hubextrap.api.distributing.executor_named", lambda _: LocalExecutor())
    here = sweep(recipe, tmp_path / "here", device="cpu")
    there = sweep(recipe, tmp_path / "there", device="cpu", settings=MergeOptions(executor="ray"))
    assert sorted(executor.done) == ["last", "prediction 240", "prediction 300"]
    moved = there.model_dump_json().replace(str(tmp_path / "there"), str(tmp_path / "here"))
    assert moved == here.model_dump_json()
    assert not (tmp_path / "there" / "predictions").exists()


def test_a_plan_is_read_back(trajectory: Path, options: EvaluationOptions, tmp_path: Path) -> None:
    full = replace(
        options, answering=Answering(2, 0.5), limit=3, include_path=[Path("tasks")], tasks=["a"], seed=7
    )
    plan = EvalWork.of(full, rows_of(trajectory)).save(place := FolderPlace(tmp_path / "place"))
    found = load_work(place)
    assert isinstance(found, EvalWork)
    assert found.to_bytes() == plan.to_bytes()
    assert found.models == tuple(rows_of(trajectory))
    assert found.options == replace(full, task_files=(), include_path=[Path.cwd() / "tasks"])
    assert (found.labels, found.gpus) == (("base", "prediction", "last"), 0)
    size = (trajectory / "step_0" / "model.safetensors").stat().st_size
    assert [found.bytes_of(unit) for unit in range(3)] == [size, 2 * size, size]
    assert EvalWork.of(replace(full, device="cuda"), []).gpus == 1
    hostile = plan.to_bytes().replace(b'"some.jsonl"', b'"../x.jsonl"')
    with pytest.raises(CorruptFile, match="sha256"):
        EvalWork.from_bytes(hostile, "plan")


def test_a_device_is_chosen_by_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="a GPU of its own; write cpu, cuda or auto"):
        device_of("ray", "cuda:1")
    assert device_of("ray", "cuda") == "cuda"  # whether or not this machine has one
    for count, device in ((0, "cpu"), (3, "cuda")):
        monkeypatch.setattr("hubextrap.executors.on_ray.RayExecutor.gpus", lambda _, count=count: count)
        assert device_of("ray", "auto") == device


def test_a_worker_refuses_what_it_would_measure_wrongly(
    trajectory: Path, options: EvaluationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trajectory / "step_0", tmp_path / "run" / "step_0")
    rows = [("base", checkpoint(tmp_path / "run", 0))]
    place = FolderPlace(tmp_path / "place")
    plan = EvalWork.of(options, rows).save(place)
    (tmp_path / "run" / "step_0" / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"config\.json: changed since the plan was made"):
        list(LocalExecutor().run(plan, place, [0], Lines()))
    gone = replace(options, tasks=["radd"], include_path=[tmp_path / "nowhere"])
    plan = EvalWork.of(gone, rows).save(place)
    with pytest.raises(EvaluationError, match="every worker sees under the same path"):
        list(LocalExecutor().run(plan, place, [0], Lines()))
    monkeypatch.setattr(
        "hubextrap.work.evaluating.evaluation_versions", lambda: {**plan.versions, "torch": "0.1+cpu"}
    )
    with pytest.raises(OutputError, match=r"and here is torch 0\.1, whose results"):
        load_work(place)


@pytest.mark.slow
def test_errors_are_the_local_ones(
    trajectory: Path, options: EvaluationOptions, tmp_path: Path, executor: Elsewhere, home: Path
) -> None:
    broken = tmp_path / "run" / "step_200"
    shutil.copytree(trajectory / "step_200", broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    rows: list[Any] = [("base", checkpoint(trajectory, 0)), ("last", checkpoint(tmp_path / "run", 200))]
    said = []
    for name in ("local", "ray"):
        with pytest.raises(HubExtrapError) as error:
            Harness(replace(options, executor=name)).measure_all(rows)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]
    assert not home.exists() or list(home.iterdir()) == []


@pytest.mark.slow
def test_another_task_of_the_same_name_is_refused(
    trajectory: Path,
    options: EvaluationOptions,
    executor: Elsewhere,
    problems: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from a machine with other data: here the worker's file of problems loses one in between."""
    real = Path.write_bytes

    def shorter(path: Path, data: bytes) -> int:
        return real(path, b"".join(data.splitlines(keepends=True)[len(executor.done) :]))

    monkeypatch.setattr(Path, "write_bytes", shorter)
    with pytest.raises(EvaluationError, match="the task is another than where last was"):
        evaluate(rows_of(trajectory), replace(options, executor="ray"))
