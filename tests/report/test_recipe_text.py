"""How the page names a run: as a recipe finds the same checkpoints, and without this machine's folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubextrap.recipe import parse_recipe
from hubextrap.recipe.models import TrajectorySection
from hubextrap.reporting.recipe_text import command_name, recipe_beginning
from hubextrap.scans import Scan
from hubextrap.scans.parts import ScannedCheckpoint


def at(step: int, repo: str | None, revision: str, path: str) -> ScannedCheckpoint:
    name = path if repo is None else f"{repo}@{revision}" + (f":{path}" if path else "")
    return ScannedCheckpoint(
        step, name, repo, revision, None if repo is None else "c" * 40, path, "F32", "0" * 64
    )


BASE = at(0, "org/base", "main", "")
RUNS = {
    "branches": ([at(step, "me/run", f"step_{step}", "") for step in (10, 20, 30)], "me/run", None),
    "subfolders": (
        [at(step, "me/run", "main", f"checkpoint-{step}") for step in (10, 20, 30)],
        "me/run",
        None,
    ),
    "of a branch": (
        [at(step, "me/run", "exp", f"ckpt/step-{step}") for step in (10, 20)],
        "me/run@exp:ckpt",
        None,
    ),
    "of verl": (
        [at(step, "me/run", "main", f"global_step_{step}/actor/huggingface") for step in (10, 20)],
        "me/run",
        None,
    ),
    "base elsewhere": (
        [BASE, *(at(step, "me/run", f"step_{step}", "") for step in (10, 20))],
        "me/run",
        "org/base@main",
    ),
    "local": ([at(step, None, "", f"/home/me/runs/run-1/step_{step}") for step in (10, 20)], "./run-1", None),
    "odd name": (
        [at(step, None, "", f"/home/me/my 'run'/step_{step}") for step in (1, 2)],
        "./my 'run'",
        None,
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_one_name_says_it(run: str, scan: Scan) -> None:
    checkpoints, repo, base = RUNS[run]
    seen = replace(scan, checkpoints=tuple(checkpoints))
    found = trajectory(seen, checkpoints[-1].step)
    assert (found.repo, found.base) == (repo, base)
    own = [one.step for one in checkpoints if one is not BASE]
    assert found.steps.only == tuple(own)
    assert trajectory(seen, own[-2]).steps.only == tuple(own[:-1])
    name = repo if "'" not in repo else "'./my '\"'\"'run'\"'\"''"
    assert command_name(seen) == (name if base is None else f"{name} --base {base}")


def test_repos_of_their_own_are_listed(scan: Scan) -> None:
    checkpoints = tuple(at(step, f"me/run-{step}", "main", "") for step in (10, 20, 30))
    seen = replace(scan, checkpoints=checkpoints)
    found = trajectory(seen, 20)
    assert found.checkpoints is not None
    assert [(one.model, one.step) for one in found.checkpoints] == [
        ("me/run-10@main", 10),
        ("me/run-20@main", 20),
    ]
    assert command_name(seen) == "RUN"


@pytest.mark.parametrize("name", ["s-{}", "step_{}000", "step_x"])
def test_steps_that_no_name_says_are_listed(name: str, scan: Scan) -> None:
    """A pattern or a scale was given, which a scan does not keep."""
    checkpoints = tuple(at(step, None, "", f"/home/me/run/{name.format(step)}") for step in (10, 20, 30))
    seen = replace(scan, checkpoints=checkpoints)
    found = trajectory(seen, 20)
    assert found.repo is None
    assert found.checkpoints is not None
    assert [one.step for one in found.checkpoints] == [10, 20]
    assert command_name(seen) == "RUN"


def test_a_folder_here_is_named_from_here(
    scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [at(step, None, "", str(tmp_path / "runs" / "a" / f"step_{step}")) for step in (1, 2)]
    assert trajectory(replace(scan, checkpoints=tuple(places)), 2).repo == "./runs/a"


def test_what_is_said_of_the_clock(scan: Scan) -> None:
    assert trajectory(scan, 400).clock == "auto"
    schedule = {"schedule": "cosine", "total_steps": 500}
    for clock in ("steps", "learning_rate", schedule):
        assert trajectory(scan, 400, clock).clock == clock  # type: ignore[arg-type]


def trajectory(scan: Scan, last: int, clock: str | None = None) -> TrajectorySection:
    text = recipe_beginning(scan, last, clock)
    return parse_recipe(f"{text}merge_method: late_lines\nparameters: {{target_step: 900}}\n").trajectory
