"""Which checkpoints of a run are taken is said in one way, by every command that takes a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_lines import commands
from safetensors.numpy import save_file

from hubextrap.cli.options import Selection, names

OF_MODELS = {"eval", "verify"}
"""They take models, one by one, and no run: each reference names one checkpoint."""


def of_a_run() -> list[str]:
    """The commands with an argument that names a run: REF, RUN, REF|RECIPE, …"""
    found = []
    for words, command in commands().items():
        metavars = [param.metavar or "" for param in command.params if param.param_type_name == "argument"]
        named = {part for metavar in metavars for part in metavar.strip("[].").split("|")}
        if named & {"REF", "RUN"} and words not in OF_MODELS:
            found.append(words)
    return found


def test_every_command_of_a_run_has_them() -> None:
    there = commands()
    assert {"steps", "scan", "backtest"} <= set(of_a_run())
    for words in of_a_run():
        lacking = set(names(Selection)) - {param.name for param in there[words].params}
        assert not lacking, (words, lacking)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two series in one folder; names count by tens."""
    for series in ("step", "phase2-step"):
        for number in range(1, 9):
            folder = tmp_path / "run" / f"{series}_{number}"
            folder.mkdir(parents=True)
            weights = {"model.norm.weight": np.linspace(0, number**1.5, 64, dtype=np.float32)}
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["steps", "scan", "backtest"])
def test_as_whole_processes(run: Path, tmp_path: Path, command: str) -> None:
    line = [sys.executable, "-m", "hubextrap", command, str(run), "-q"]
    chosen = ["--series", "step_{step}", "--step-scale", "10", "--min-step", "20", "--max-step", "70"]
    based = [*chosen, "--base", str(run / "step_1")]
    patterned = ["--pattern", "phase2-step_{step}", "--max-step", "7"]
    for options, steps in ((chosen, (6, 20, 70)), (based, (7, 0, 70)), (patterned, (7, 1, 7))):
        out = ["--out", str(tmp_path / f"{steps}.safetensors")] if command == "scan" else []
        done = subprocess.run([*line, *options, *out], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
        count, first, last = steps
        said = f": {count} checkpoints" + ("" if command == "steps" else f", steps {first} to {last}")
        assert said in " ".join(done.stdout.split())  # lines are folded where COLUMNS says so
    refused = subprocess.run(line, capture_output=True, text=True, check=False)
    assert "--series" in refused.stderr  # there are two
