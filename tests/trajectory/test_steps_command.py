"""`hubextrap steps`: the table, the JSON, the errors."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hubextrap.cli.main import main
from hubextrap.localhub import LocalHub

Model = Callable[..., dict[str, bytes]]
OnBranches = Callable[..., dict[str, str]]
LONG = "grpo-" + "x" * 120


@pytest.fixture
def steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `hubextrap steps …`; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hubextrap", "steps", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        out, err = capsys.readouterr()
        return exited.value.code, out, err  # type: ignore[return-value]

    return run


Run = Callable[..., tuple[int, str, str]]


def test_the_table_shows_whole_names_off_a_terminal(
    steps: Run, repo_id: str, on_branches: OnBranches
) -> None:
    commits = on_branches([f"{LONG}-step_{step}" for step in (10, 200)])
    code, out, err = steps(repo_id)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{repo_id}: 2 checkpoints of {LONG}-step_{{step}}"
    assert lines[1].split() == ["step", "checkpoint", "commit", "size", "dtype", "date"]
    for line, step in zip(lines[2:], (10, 200), strict=True):
        name = f"{LONG}-step_{step}"
        cells = line.split()
        assert cells[:3] == [str(step), name, commits[name][:8]]
        assert cells[3:6] == ["245", "B", "BF16"]
    assert "list checkpoints: 2 checkpoints" in err


def test_json_has_the_full_commits(steps: Run, repo_id: str, on_branches: OnBranches) -> None:
    commits = on_branches(["step_1", "step_2"])
    code, out, err = steps(repo_id, "--json", "--quiet")
    listed = json.loads(out)
    assert (code, err) == (0, "")
    assert [(entry["step"], entry["revision"], entry["commit"]) for entry in listed] == [
        (1, "step_1", commits["step_1"]),
        (2, "step_2", commits["step_2"]),
    ]
    place = {"step", "name", "repo", "revision", "commit", "path"}
    assert listed[0].keys() == place | {"kind", "weights", "size", "dtype", "date", "note", "same_weights_as"}
    assert listed[0]["kind"] == "model"
    assert listed[0]["dtype"] == "BF16"
    assert listed[0]["date"].startswith("20")


def test_fast_asks_for_no_file(steps: Run, hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["step_1", "step_2"])
    hub.requests.clear()
    code, out, _ = steps(repo_id, "--fast", "--json")
    assert code == 0
    assert [entry["dtype"] for entry in json.loads(out)] == [None, None]
    assert not any("/resolve/" in request.path for request in hub.requests)


def test_options_reach_discovery(
    steps: Run, hub: LocalHub, repo_id: str, on_branches: OnBranches, model: Model
) -> None:
    on_branches(["epoch_1", "epoch_2", "epoch_3", "epoch_4"])
    hub.create_repo(f"{repo_id}-base")
    hub.commit(f"{repo_id}-base", model(0))
    options = ["--pattern", "epoch_{step}", "--step-scale", "50", "--min-step", "100", "--max-step", "150"]
    code, out, _ = steps(repo_id, *options, "--base", f"{repo_id}-base", "--json")
    assert code == 0
    assert [(entry["step"], entry["name"]) for entry in json.loads(out)] == [
        (0, f"{repo_id}-base@main"),
        (100, f"{repo_id}@epoch_2"),
        (150, f"{repo_id}@epoch_3"),
    ]


def test_more_series_than_one_are_listed(steps: Run, repo_id: str, on_branches: OnBranches) -> None:
    on_branches(["global_step_1", "global_step_2", "new_global_step_1"])
    code, out, err = steps(repo_id)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {repo_id}: there are 2 series of checkpoints; choose one")
    assert "  branches: new_global_step_{step}  1 checkpoint" in err
    code, out, _ = steps(repo_id, "--series", "new_global_step_{step}")
    assert (code, len(out.splitlines())) == (0, 3)


def test_folders_and_an_unknown_repo(steps: Run, hub: LocalHub, repo_id: str, model: Model) -> None:
    code, _, err = steps(repo_id)
    assert code == 1
    assert err.startswith(f"error: {repo_id}: no such repo")
    hub.create_repo(repo_id)
    hub.commit(repo_id, model(1, "runs/step_1"))
    code, out, _ = steps(repo_id)
    assert code == 0
    assert out.splitlines()[-1].split()[1] == "runs/step_1"


@pytest.mark.slow
def test_a_repo_that_was_renamed(steps: Run, hub: LocalHub, repo_id: str, on_branches: OnBranches) -> None:
    commits = on_branches(["step_1", "step_2"])
    hub.move_repo(repo_id, f"{repo_id}-new")
    code, out, _ = steps(repo_id, "--json", "--quiet")
    assert code == 0
    assert [entry["commit"] for entry in json.loads(out)] == list(commits.values())
