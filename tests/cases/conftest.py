"""What the tests of reported cases use: the commands as a user runs them, and what they refuse alike.

The runs themselves are made with the functions of tests/case_runs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from case_runs import recipe_for
from command_lines import Ended, run_main


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """Run `hubextrap` in this process, as its `main` does, in the test's folder; code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Ended:
        return run_main(*(str(argument) for argument in arguments))

    return run


@pytest.fixture
def refused(cli: Callable[..., Ended], tmp_path: Path) -> Callable[..., str]:
    """Check that `plan`, `merge`, `scan` and `predict` of a run fail with one message, whose lines are lines,
    and write nothing; the message."""

    def check(place: Path | str, target_step: int = 400) -> str:
        recipe = recipe_for(place, tmp_path / "r.yaml", target_step)
        out, scan = tmp_path / "out", tmp_path / "s.safetensors"
        planned = cli("plan", recipe, "--out", out, "--json")
        assert planned.code == 1, planned
        said = ["\n".join(json.loads(planned.out)["problems"])]
        commands = (
            ("merge", recipe, "--out", out, "-q"),
            ("scan", place, "--out", scan, "-q"),
            ("predict", place, "--to", str(target_step), "--out", out, "-q"),
        )
        for command in commands:
            ended = cli(*command)
            assert ended.code == 1, ended
            said.append(ended.err.partition("error: ")[2].rstrip("\n"))
        assert said[0] == said[1] == said[2]
        assert said[3].partition("\npredict has no option for it")[0] == said[0]
        assert not out.exists()
        assert not scan.exists()
        return said[0]

    return check
