"""`hubextrap reground` as a user types it: what it prints, what --quiet and --json leave of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

TRAINER = Path(__file__).parents[1] / "reground" / "command" / "trainer.py"


def recipe(folder: Path, model: Path, **section: object) -> Path:
    command = [sys.executable, str(TRAINER), "--model", "{model}", "--start-step", "{start_step}"]
    content = {
        "model": str(model),
        "train": [*command, "--steps", "{steps}", "--output", "{output}"],
        "checkpoint": "checkpoint-{step}",
        "window": 4,
        "jump": 6,
        "iterations": 2,
        "guard": {"max_error": "off"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"reground": content | section}))
    return path


@pytest.mark.slow
def test_a_run_says_what_it_does(cli: Callable[..., object], demo_data: Path, tmp_path: Path) -> None:
    start = demo_data / "rlvr-C" / "step_0"
    out = tmp_path / "run"
    result = cli("reground", recipe(tmp_path, start), "--out", out)
    assert result.code == 0
    model = out / "round-002" / "output" / "checkpoint-4"
    assert result.out.splitlines() == [
        "round 1: RL step 4, jumped over 6 to step 10: the guard is off",
        (
            "round 2: RL step 8, skipped to step 14: training ends here, and what it ends with was trained "
            "(the guard is off)"
        ),
        "finished: 2 iterations are done",
        f"model: {model}",
    ]
    assert f"round 1: RL steps 0 to 4, from {start}\n" in result.err
    assert f"\ntraining from {out / 'round-001' / 'extrapolated'}\n" in result.err  # the trainer's own words
    again = cli("reground", recipe(tmp_path, start), "--out", out, "--quiet", "--json")
    assert (again.code, again.err) == (0, "")
    found = json.loads(again.out)
    assert found["model"] == str(model)
    assert found["reason"] == "2 iterations are done"
    assert [decision["action"] for decision in found["decisions"]] == ["jumped", "skipped"]
    assert found["decisions"][0]["coefficients"] == {"*": [-1.5, 2.5]}


def test_errors_are_the_commands(cli: Callable[..., object], demo_data: Path, tmp_path: Path) -> None:
    start = demo_data / "rlvr-C" / "step_0"
    failing = recipe(tmp_path, start, train=["sh", "-c", "echo no GPU; exit 9", "{model}", "{steps}{output}"])
    result = cli("reground", failing, "--out", tmp_path / "run", "--quiet")
    assert result.code == 1
    assert result.err == (
        "error: round 1: the trainer ended with exit code 9; its last lines:\n  no GPU\nits whole output is "
        f"in {tmp_path / 'run' / 'round-001' / 'train.log'}; fix the cause, then run the same command again "
        "to go on\n"
    )
    failing.write_text(failing.read_text().replace("window", "widnow"))
    result = cli("reground", failing, "--out", tmp_path / "other")
    assert result.code == 1
    assert "reground.widnow: unknown key; did you mean window?" in result.err
    assert not (tmp_path / "other").exists()
