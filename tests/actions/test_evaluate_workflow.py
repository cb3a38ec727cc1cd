"""evaluate.yml and the whole action on the demo's run: green, and red where the prediction is worse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import hubextrap
from hubextrap.evaluation import EvaluationTable
from hubextrap.localhub import LocalHub

TASKS = Path(__file__).parents[2] / "demo" / "tasks"
OPTIONS = f"--include-path\n{TASKS}\n--limit\n100\n--batch-size\n200\n--quiet"
GOOD, BAD = 100, 0
"""Where the line starts: from step 0 it multiplies the run's first steps, and scores far below step 200."""


@pytest.fixture
def recipe(hub: LocalHub, repo_id: str, demo_data: Path, runner: Any) -> Callable[[int], str]:
    """Write a recipe for a run on the hub, with a line that starts at some step."""
    hub.create_repo(repo_id)
    for step in (0, 100, 200):
        folder = demo_data / "rlvr-C" / f"step_{step}"
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=folder.name)

    def write(base_step: int) -> str:
        content = {
            "trajectory": {"repo": repo_id},
            "merge_method": "two_point",
            "parameters": {"target_step": 400, "base_step": base_step},
            "push": {"repo": f"{repo_id}-predicted", "revision": "step_400"},
            "evaluate": {
                "tasks": ["radd"],
                "include_path": str(TASKS),
                "limit": 100,
                "batch_size": 200,
                "against": ["last"],
            },
        }
        (runner.workspace / "mine.yaml").write_text(yaml.safe_dump(content))
        return "mine.yaml"

    return write


def dispatch(**inputs: str) -> dict[str, Any]:
    return {
        "github": {"event_name": "workflow_dispatch"},
        "inputs": {"tasks": "radd", "arguments": OPTIONS, **inputs},
    }


@pytest.mark.slow
def test_prediction_that_holds_is_green(runner: Any, recipe: Callable[[int], str], hub: LocalHub) -> None:
    hub.requests.clear()
    ran = runner.job("evaluate.yml", "evaluate", **dispatch(recipe=recipe(GOOD), against="last"))
    assert ran.code == 0, ran.log
    assert "| prediction | 400 |" in ran.summary
    assert "is worse" not in ran.summary
    assert not any(request.method == "PUT" for request in hub.requests)  # nothing is pushed
    action, given = ran.used[-1]
    assert action.startswith("actions/upload-artifact@")
    assert given["name"] == "evaluation"
    assert ran.summary.startswith("✅ radd exact")
    assert ran.outputs["verdict"] == "passed"
    (results,) = Path("/").glob(given["path"].split()[0].lstrip("/"))
    scores = {row.label: row.scores[0].value for row in EvaluationTable.load(results).rows}
    assert scores["prediction"] > scores["last"]


@pytest.mark.slow
def test_prediction_that_is_worse_is_red(
    runner: Any, recipe: Callable[[int], str], repo_id: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a push would have left it on the Hub; the artifact is kept all the same."""
    monkeypatch.setenv("HF_TOKEN", token)
    hubextrap.merge(hubextrap.load_recipe(runner.workspace / recipe(BAD)))
    given = dispatch(reference=f"{repo_id}-predicted@step_400", against="last")
    ran = runner.job("evaluate.yml", "evaluate", **given)
    assert ran.code == 3
    folded = " ".join(ran.log.split())
    assert re.search(r"error: radd exact\S* fell by 0\.\d+, more than --max-loss 0\.02 allows \(", folded)
    assert re.search(r"^::error title=hubextrap%3A the gate::radd exact\S* fell by ", ran.log, re.M)
    assert re.match(r"❌ radd exact\S* fell by 0\.\d+, more than --max-loss 0\.02 allows \(", ran.summary)
    assert "The prediction is worse than the last observed checkpoint" in ran.summary
    assert ran.outputs["verdict"] == "failed"
    assert ran.used[-1][0].startswith("actions/upload-artifact@")
    for path in ran.used[-1][1]["path"].split():
        assert list(Path("/").glob(path.lstrip("/")))


@pytest.mark.slow
def test_loss_that_is_allowed_is_green(runner: Any, recipe: Callable[[int], str]) -> None:
    ran = runner.job("evaluate.yml", "evaluate", **dispatch(recipe=recipe(BAD), **{"max-loss": "0.9"}))
    assert ran.code == 0, ran.log
    assert "The prediction is worse than the last observed checkpoint" in ran.summary


@pytest.mark.slow
@pytest.mark.parametrize(("base_step", "code"), [(GOOD, 0), (BAD, 3)])
def test_action_runs_the_whole_chain(
    runner: Any, recipe: Callable[[int], str], token: str, repo_id: str, base_step: int, code: int
) -> None:
    """The five lines of another repository."""
    inputs = {"command": "run", "recipe": recipe(base_step), "max-loss": "0.02", "token": token}
    ran = runner.action("hubextrap", inputs)
    assert ran.code == code, ran.log
    assert f"at `{repo_id}-predicted@step_400`" in ran.summary
    assert "| prediction | 400 |" in ran.summary
    assert ran.summary.startswith("❌ radd" if code else "✅ radd")
    assert ran.summary.strip() in ran.log
    assert re.fullmatch("[0-9a-f]{40}", ran.outputs["commit"])
    assert ran.outputs["verdict"] == ("failed" if code else "passed")
    assert json.loads(Path(ran.outputs["results"]).read_text())["rows"]
    assert Path(ran.outputs["summary"]).read_text() == ran.summary


@pytest.mark.slow
@pytest.mark.parametrize(("base_step", "code"), [(GOOD, 0), (BAD, 3)])
def test_action_pushes_only_what_is_better(
    runner: Any,
    recipe: Callable[[int], str],
    token: str,
    repo_id: str,
    hub: LocalHub,
    base_step: int,
    code: int,
) -> None:
    inputs = {"command": "run", "recipe": recipe(base_step), "push-if-better": "true", "token": token}
    ran = runner.action("hubextrap", inputs)
    assert ran.code == code, ran.log
    assert ran.outputs["verdict"] == ("failed" if code else "passed")
    pushed = [request for request in hub.requests if "predicted/commit/" in request.path]
    assert bool(pushed) == bool(ran.outputs["commit"]) == (not code)
    if code:
        assert re.match(r"❌ radd exact\S* fell by 0\.\d+, more than chance \(", ran.summary)
        assert "pushes it all the same" in " ".join(ran.log.split())


@pytest.mark.slow
def test_schedule_is_not_stopped_by_a_variable_for_it(runner: Any) -> None:
    """By hand with a recipe, where the variable for the schedule is set: the recipe is what was asked for."""
    given = dispatch(recipe="absent.yaml") | {"vars": {"HUBEXTRAP_REFERENCE": "me/nothing"}}
    ran = runner.job("evaluate.yml", "evaluate", **given)
    assert ran.code == 1
    assert ran.summary.startswith("❌ absent.yaml: no such file")
    assert ran.outputs["verdict"] == "none"


def test_calls_in_one_run_do_not_stop_each_other(runner: Any) -> None:
    """A matrix over tasks or prompts: the same branch and the same prediction."""
    same = {"reference": "me/model@step_400", "tasks": "radd", "artifact": "evaluation"}
    inputs = [same, same | {"tasks": "gsm8k"}, same | {"artifact": "evaluation-with-template"}]
    github = {"ref": "refs/heads/main"}
    groups = [runner.concurrency("evaluate.yml", github=github, inputs=each) for each in inputs]
    assert len(set(groups)) == 3


def test_schedule_needs_a_variable(runner: Any) -> None:
    github = {"event_name": "schedule"}
    assert not runner.runs("evaluate.yml", "evaluate", github=github, vars={})
    assert runner.runs("evaluate.yml", "evaluate", github=github, vars={"HUBEXTRAP_REFERENCE": "me/model"})


@pytest.mark.slow
def test_schedule_measures_what_the_variables_name(runner: Any) -> None:
    variables = {"HUBEXTRAP_REFERENCE": "me/nothing@there", "HUBEXTRAP_TASKS": "gsm8k"}
    ran = runner.job("evaluate.yml", "evaluate", github={"event_name": "schedule"}, vars=variables)
    assert ran.code == 1
    assert "me/nothing" in ran.log
    assert "no such repo" in ran.log
