"""Scans and evaluations on Ray: what they find is what is found here, and this process reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Lines
from ray_nodes import Nodes, attempts_but_rays
from scan_runs import make_run

from hubextrap import ReadingOptions, api
from hubextrap.evaluation import EvaluationOptions, Harness, TaskFile, evaluate
from hubextrap.logits import Mixture
from hubextrap.trajectory import Checkpoint, find_trajectory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def other_hosts(other_hosts: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: attempts_but_rays(other_hosts())


@pytest.fixture(autouse=True)
def home(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where plans lie; the nodes are joined."""
    nodes.join(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hubextrap" / "work"


def test_a_scan(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"layer.{number}.weight": (300, 20) for number in range(8)}
    run = find_trajectory(str(make_run(tmp_path / "run", steps=(0, 10, 30), shapes=shapes)))
    api.scan(run, out=tmp_path / "here", reference_share=0.01)
    monkeypatch.setattr("hubextrap.work.scanning.LEAST_BYTES", 1)  # a tensor to a unit
    monkeypatch.setattr("hubextrap.work.scanning.UNITS", 10**9)
    monkeypatch.setattr("hubextrap.engine.scan.stream", lambda *_: pytest.fail("read here"))
    api.scan(run, out=tmp_path / "there", reference_share=0.01, settings=ReadingOptions(executor="ray"))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert list(home.iterdir()) == []


def test_an_evaluation(
    demo_data: Path, tmp_path: Path, home: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = (
        Checkpoint(step, None, "", None, str(demo_data / "rlvr-C" / f"step_{step}")) for step in (0, 200)
    )
    rows = [("prediction", Mixture((first, last), (-0.3, 1.3), 260)), ("last", last)]
    problems = (demo_data / "rlvr-C" / "problems.jsonl").read_text().splitlines(keepends=True)[:10]
    (tmp_path / "some.jsonl").write_text("".join(problems))
    options = EvaluationOptions(task_files=[TaskFile(tmp_path / "some.jsonl", "exact")], batch_size=10)
    here = evaluate(rows, options)
    monkeypatch.setattr(Harness, "measure", lambda *_: pytest.fail("measured here"))
    there = evaluate(rows, options, executor="ray", progress=lines)
    assert there.model_dump_json() == here.model_dump_json()
    assert list(home.iterdir()) == []
