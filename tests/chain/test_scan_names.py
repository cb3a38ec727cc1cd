"""A scan's file is called after its run, so that runs that are scanned in one folder keep apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubextrap.scans import Scan
from hubextrap.trajectory import parse_reference


@pytest.fixture
def two_runs(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders first and second, and elsewhere/first, which is another run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoints, tmp_path / "first")
    for name in ("second", "elsewhere/first"):
        shutil.copytree(checkpoints, tmp_path / name)
        shutil.rmtree(tmp_path / name / "step_0")
    return tmp_path


def test_each_run_has_its_own(
    two_runs: Path, cli: Callable[..., Any], on_hub: Callable[..., str], checkpoints: Path
) -> None:
    for words in (("first",), ("second",), ("second",), ("./first/", "--max-step", "30")):
        assert cli("scan", *words, "-q").code == 0, words
    repo = on_hub(checkpoints)
    assert cli("scan", repo, "-q").code == 0
    names = {"first.scan.safetensors", "second.scan.safetensors", f"{repo[3:]}.scan.safetensors"}
    assert {path.name for path in two_runs.glob("*.safetensors")} == names
    assert Scan.load(two_runs / "first.scan.safetensors").steps == (0, 10, 20, 30)
    assert cli("backtest", "first.scan.safetensors", "-q").code == 0


def test_what_holds_another_scan_is_not_overwritten(two_runs: Path, cli: Callable[..., Any]) -> None:
    """Neither that of a run of the same name, nor that of other steps."""
    assert cli("scan", "first", "-q").code == 0
    before = (two_runs / "first.scan.safetensors").read_bytes()
    for words in (("elsewhere/first",), ("first", "--max-step", "20")):
        refused = cli("scan", *words, "-q")
        assert refused.code == 1
        assert "first.scan.safetensors: holds a scan of other checkpoints" in refused.err
        assert "choose another --out" in refused.err
        assert cli("scan", *words, "--out", f"{len(words)}.safetensors", "-q").code == 0
    assert (two_runs / "first.scan.safetensors").read_bytes() == before


def test_a_recipe_names_its_run(two_runs: Path, cli: Callable[..., Any]) -> None:
    for name, section in (
        ("found", {"repo": "second"}),
        ("listed", {"checkpoints": [{"model": f"first/step_{step}", "step": step} for step in (10, 20)]}),
    ):
        content = {"trajectory": section, "merge_method": "two_point", "parameters": {"target_step": 60}}
        (two_runs / f"{name}.yaml").write_text(yaml.safe_dump(content))
        result = cli("scan", f"{name}.yaml", "-q")
        assert result.code == 0, result
    assert {path.name for path in two_runs.glob("*.safetensors")} == {
        "second.scan.safetensors", "listed.scan.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("me/run", "run"),
        ("me/run@step_1", "run-step_1"),
        ("me/run@a/b:c/d", "run-a-b-c-d"),
        ("hf://me/run@x/y", "run-x-y"),
        ("/", "run"),
    ],
)
def test_names(reference: str, name: str) -> None:
    assert parse_reference(reference).file_name == name


@pytest.mark.slow
def test_as_whole_processes(two_runs: Path) -> None:
    for words, code in ((("first",), 0), (("second",), 0), (("elsewhere/first",), 1)):
        line = [sys.executable, "-m", "hubextrap", "scan", *words, "-q"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == code, done
        assert (f"saved in {words[0]}.scan.safetensors" in done.stdout) is (code == 0)
