from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browsing import Browser
from evaluations import SETTINGS
from typer.testing import CliRunner

from hubextrap import api
from hubextrap.cli.app import app
from hubextrap.evaluation.table import EvaluationTable, Row, Score, TaskRecord
from hubextrap.scans import LogProbs, LogProbSource, Scan
from hubextrap.trajectory import find_trajectory

DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"


@pytest.fixture(scope="session")
def scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan of the bundled run, with log-probabilities of 60 tokens."""
    path = tmp_path_factory.mktemp("report") / "run.safetensors"
    scan = api.scan(find_trajectory(str(DEMO)))
    rng = np.random.default_rng(0)
    values = np.array(scan.steps) / 400 * rng.uniform(0.1, 1, (60, 1)) + 0.05 * rng.standard_normal((60, 8))
    logprobs = LogProbs(
        scan.steps,
        LogProbSource("prompts.jsonl", "0" * 64, None, None, False),
        ("a",) * 60,
        np.arange(60) // 6,
        np.zeros(60, dtype=np.int64),
        (values - 2).astype(np.float32),
    )
    replace(scan, logprobs=logprobs).save(path)
    return path


@pytest.fixture(scope="session")
def scan(scan_file: Path) -> Scan:
    return Scan.load(scan_file)


def table(*rows: tuple[str, int | None, float], sha256: str = "a" * 64) -> EvaluationTable:
    """An evaluation of one task; rows are label, step and score."""
    return EvaluationTable(
        settings=SETTINGS.model_copy(
            update={"tasks": {"radd": TaskRecord(version="1", sha256=sha256, num_fewshot=0, documents=500)}}
        ),
        rows=tuple(
            Row(
                label=label,
                step=step,
                reference=f"me/run@{'predicted' if label == 'prediction' else f'step_{step}'}",
                commit="c" * 40,
                scores=(
                    Score(
                        task="radd",
                        metric="exact_match",
                        filter="none",
                        value=value,
                        stderr=0.01,
                        higher_is_better=True,
                    ),
                ),
            )
            for label, step, value in rows
        ),
    )


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two evaluations of the same task that share the last observed checkpoint."""
    folder = tmp_path_factory.mktemp("results")
    table(("prediction", 400, 0.982), ("last", 200, 0.828), ("target", 400, 0.984)).save(folder / "a.json")
    table(("base", 0, 0.41), ("last", 200, 0.828)).save(folder / "b.json")
    return [folder / "a.json", folder / "b.json"]


@pytest.fixture(scope="session")
def page(scan_file: Path, results: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the two, as the command writes it, with the plots in ``png`` beside it."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    options = [f"--evaluation={path}" for path in results]
    options += ["--out", str(out), "--png", str(out.parent / "png"), "--title", "<b>&"]
    done = CliRunner().invoke(app, ["report", str(scan_file), *options])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(
        "✓ The prediction scored better than the last checkpoint: radd exact_match "
    )
    assert f"wrote {out} and 8 plots in {out.parent / 'png'}" in done.output
    return out


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, for the tests that are not skipped where there is none."""
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def short_scan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two checkpoints, too few for anything."""
    path = tmp_path_factory.mktemp("short") / "two.safetensors"
    api.scan(find_trajectory(str(DEMO), max_step=40), out=path)
    return path


@pytest.fixture(scope="session")
def sampled_scan() -> Scan:
    """Of 512 weights of each tensor of the bundled run."""
    return api.scan(DEMO, sample=512)


@pytest.fixture(scope="session")
def sampled_page(sampled_scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of it, read from its file."""
    folder = tmp_path_factory.mktemp("sampled")
    sampled_scan.save(folder / "run.safetensors")
    return api.report(folder / "run.safetensors", out=folder / "report.html").page
