"""merge.yml, step by step, against the loopback Hub: green, red, with a token, as a trusted publisher."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubextrap.localhub import LocalHub

ID_TOKEN = "identity-of-this-job"
PUSH = {"event_name": "push", "ref": "refs/heads/main"}


@pytest.fixture
def run_on_hub(hub: LocalHub, repo_id: str, demo_data: Path) -> str:
    """A run with three checkpoints as branches."""
    hub.create_repo(repo_id)
    for step in (0, 100, 200):
        folder = demo_data / "rlvr-C" / f"step_{step}"
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=folder.name)
    return repo_id


@pytest.fixture
def change(runner: Any, git: Callable[..., str], run_on_hub: str) -> Callable[..., str]:
    """Commit a recipe; returns the commit before."""

    def commit(name: str = "mine.yaml", **sections: object) -> str:
        recipe: dict[str, object] = {
            "trajectory": {"repo": run_on_hub},
            "merge_method": "two_point",
            "parameters": {"target_step": 400, "base_step": 100},
            "push": {"repo": f"{run_on_hub}-predicted", "revision": "step_400"},
        }
        (runner.workspace / "merge_configs" / name).write_text(yaml.safe_dump(recipe | sections))
        before = git(runner.workspace, "rev-parse", "HEAD")
        git(runner.workspace, "add", "--all")
        git(runner.workspace, "commit", "--quiet", "-m", "change")
        return before

    return commit


def pull_request(before: str) -> dict[str, Any]:
    return {"event_name": "pull_request", "event": {"pull_request": {"base": {"sha": before}}}}


@pytest.mark.slow
def test_pull_request_plans_what_it_changes(
    runner: Any, change: Callable[..., str], hub: LocalHub, run_on_hub: str
) -> None:
    change("older.yaml")
    change("demo.yaml", trajectory={"repo": "not/there"})
    before = change()
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert found.code == 0, found.log
    assert json.loads(found.outputs["changed"]) == ["merge_configs/mine.yaml"]
    assert "merge_configs/mine.yaml: ok" in found.log

    hub.requests.clear()
    planned = runner.job(
        "merge.yml", "plan", needs=needs(found), matrix={"recipe": "merge_configs/mine.yaml"}
    )
    assert planned.code == 0, planned.log
    assert "### Plan of `merge_configs/mine.yaml`: ✅ no problems found" in planned.summary
    assert "-2 × step 100, +3 × step 200" in planned.summary
    assert not any("Authorization" in request.headers for request in hub.requests)
    assert not any("predicted" in request.path for request in hub.requests)
    github = {**pull_request(before), "ref": "refs/pull/1/merge"}
    assert not runner.runs("merge.yml", "merge", github=github, needs=needs(found))


def test_plan_with_a_problem_is_red(
    runner: Any, change: Callable[..., str], hub: LocalHub, run_on_hub: str
) -> None:
    config = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    hub.commit(run_on_hub, {"config.json": config, "model.safetensors": b"damaged"}, revision="step_300")
    change()
    planned = runner.job("merge.yml", "plan", needs=NEEDS, matrix={"recipe": "merge_configs/mine.yaml"})
    assert planned.code == 1
    assert "❌ 1 problem" in planned.summary
    assert "step_300" in planned.summary


def test_recipe_with_a_mistake_is_red(runner: Any, change: Callable[..., str]) -> None:
    before = change(merge_metod="two_point")
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert found.code == 1
    assert "merge_metod: unknown key; did you mean merge_method?" in found.log
    assert found.outputs["changed"] == ""


@pytest.mark.slow
def test_first_push_and_rewritten_history_take_every_recipe(runner: Any, change: Callable[..., str]) -> None:
    change("a.yaml")
    change("b.yaml", push=None)
    for before in ("0" * 40, "1" * 40, ""):
        found = runner.job("merge.yml", "recipes", github={**PUSH, "event": {"before": before}})
        assert json.loads(found.outputs["changed"]) == ["merge_configs/a.yaml", "merge_configs/b.yaml"]
        assert json.loads(found.outputs["pushing"]) == ["merge_configs/a.yaml"]


def test_recipes_that_train_are_checked_and_left_alone(
    runner: Any, change: Callable[..., str], git: Callable[..., str]
) -> None:
    before = change()
    path = runner.workspace / "merge_configs" / "reground_mine.yaml"
    path.write_text((Path(__file__).parents[2] / "merge_configs" / "reground_trl.yaml").read_text())
    git(runner.workspace, "add", "--all")
    git(runner.workspace, "commit", "--quiet", "-m", "reground")
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert json.loads(found.outputs["changed"]) == ["merge_configs/mine.yaml"]
    path.write_text(path.read_text().replace("window:", "windwo:"))
    git(runner.workspace, "commit", "--quiet", "--all", "-m", "wrong")
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert "reground.windwo: unknown key; did you mean window?" in found.log


def test_no_model_runs_where_the_token_is(runner: Any, change: Callable[..., str]) -> None:
    """A walk would bring code of tasks of the checkout, and packages with setup scripts, into that job."""
    walk = {"target_step": {"up_to": 400, "tasks": ["mine"], "include_path": ["tasks"]}, "base_step": 100}
    before = change(parameters=walk, push=None)
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert (found.code, json.loads(found.outputs["changed"])) == (0, ["merge_configs/mine.yaml"])
    before = change(parameters=walk)
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert found.code == 1
    assert '"merge_configs/mine.yaml": its target_step is to be chosen by a walk' in found.log
    assert found.outputs == {"changed": "", "pushing": ""}


def test_nothing_changed(runner: Any, change: Callable[..., str], git: Callable[..., str]) -> None:
    change()
    head = git(runner.workspace, "rev-parse", "HEAD")
    found = runner.job("merge.yml", "recipes", github={**PUSH, "event": {"before": head}})
    assert (found.code, found.outputs) == (0, {"changed": "[]", "pushing": "[]"})
    assert not runner.runs("merge.yml", "plan", github=PUSH, needs=needs(found))
    assert not runner.runs("merge.yml", "merge", github=PUSH, needs=needs(found))


@pytest.mark.slow
def test_names_of_files_are_not_read_as_code(runner: Any, change: Callable[..., str]) -> None:
    names = [
        "$(touch pwned).yaml",
        "-x --version.yaml",
        "; touch pwned;.yaml",
        "`touch pwned`.yaml",
        "a\nb=c.yaml",
    ]
    before, *_ = [change(name) for name in names]
    found = runner.job("merge.yml", "recipes", github=pull_request(before))
    assert found.code == 0, found.log
    assert sorted(json.loads(found.outputs["changed"])) == sorted(f"merge_configs/{name}" for name in names)
    assert set(found.outputs) == {"changed", "pushing"}
    name = "-x $(touch pwned).yaml"
    (runner.workspace / name).write_bytes((runner.workspace / "merge_configs" / names[0]).read_bytes())
    planned = runner.job("merge.yml", "plan", needs=needs(found), matrix={"recipe": name})
    assert planned.code == 0, planned.log
    assert f"Plan of `{name}`: ✅ no problems found" in planned.summary
    assert not list(runner.workspace.rglob("*pwned"))


@pytest.mark.slow
def test_main_merges_and_pushes_with_a_token(
    runner: Any, change: Callable[..., str], hub: LocalHub, token: str, run_on_hub: str
) -> None:
    before = change()
    found = runner.job("merge.yml", "recipes", github={**PUSH, "event": {"before": before}})
    assert runner.runs("merge.yml", "merge", github=PUSH, needs=needs(found))
    merged = run_merge(runner, secrets={"HF_TOKEN": token})
    assert merged.code == 0, merged.log
    assert f"at `{run_on_hub}-predicted@step_400`" in merged.log
    assert f"at `{run_on_hub}-predicted@step_400`" in merged.summary
    assert token not in merged.log + merged.summary


@pytest.mark.slow
def test_main_without_any_rights_is_red(runner: Any, change: Callable[..., str], run_on_hub: str) -> None:
    change()
    merged = run_merge(runner, secrets={"HF_TOKEN": ""})
    assert merged.code == 1
    assert f"no token by Trusted Publishers for '{run_on_hub}-predicted'" in merged.log
    assert "id-token: write" in merged.log


@pytest.fixture
def identity_provider() -> Iterator[dict[str, str]]:
    """What GitHub gives a job with `id-token: write`: where it gets its identity, and the token for that."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.headers["Authorization"] == "Bearer request-token" and "audience=http" in self.path
            self.send_response(200 if right else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"value": ID_TOKEN}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{server.server_address[1]}/token?version=1",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
        }
        server.shutdown()


@pytest.mark.slow
def test_main_merges_and_pushes_as_a_trusted_publisher(
    runner: Any, change: Callable[..., str], hub: LocalHub, run_on_hub: str, identity_provider: dict[str, str]
) -> None:
    change()
    runner.environment = identity_provider
    hub.create_repo(f"{run_on_hub}-predicted")
    refused = run_merge(runner, secrets={})
    assert refused.code == 1
    assert f"no token by Trusted Publishers for '{run_on_hub}-predicted'" in refused.log

    hub.trust(f"{run_on_hub}-predicted", ID_TOKEN)
    merged = run_merge(runner, secrets={})
    assert merged.code == 0, merged.log
    assert f"at `{run_on_hub}-predicted@step_400`" in merged.log
    assert ID_TOKEN not in merged.log
    assert "hf_jwt" not in merged.log + merged.summary


@pytest.mark.slow
def test_trusted_publisher_cannot_write_elsewhere(
    runner: Any, change: Callable[..., str], hub: LocalHub, run_on_hub: str, identity_provider: dict[str, str]
) -> None:
    change()
    runner.environment = identity_provider
    hub.create_repo(f"{run_on_hub}-predicted")
    hub.create_repo(f"{run_on_hub}-other")
    hub.trust(f"{run_on_hub}-other", ID_TOKEN)
    result = runner.action(
        "hubextrap",
        {
            "command": "merge",
            "recipe": "merge_configs/mine.yaml",
            "trusted-publisher": f"{run_on_hub}-other",
        },
    )
    assert result.code == 1
    assert "403" in result.log


def test_what_cannot_be_is_said_before_anything_runs(runner: Any) -> None:
    for inputs, message in (
        (
            {"command": "rm"},
            "the input command is plan, merge, run, eval, predict, backtest, scan, report or watch",
        ),
        ({"command": "plan"}, "plan needs the input recipe"),
        ({"command": "eval"}, "eval needs the input tasks"),
        ({"command": "eval", "tasks": "x"}, "eval needs the input reference or recipe"),
        (
            {"command": "eval", "tasks": "x", "reference": "a/b", "recipe": "r"},
            "eval takes the input reference or recipe, not both",
        ),
        ({"command": "predict"}, "predict needs the input run"),
        ({"command": "backtest"}, "backtest needs the input run or recipe"),
        (
            {"command": "report", "run": "a/b", "recipe": "r"},
            "report takes the input run or recipe, not both",
        ),
        (
            {"command": "merge", "recipe": "r", "max-loss": "0"},
            "the input max-loss has no effect on merge; it is for run eval predict",
        ),
        (
            {"command": "predict", "run": "a/b", "recipe": "r"},
            (
                "the input recipe has no effect on predict; it is for plan merge run eval backtest scan "
                "report watch"
            ),
        ),
        ({"to": "400"}, "the input to has no effect without a command; it is for predict"),
        (
            {"command": "eval", "tasks": "x", "reference": "a/b", "push-if-better": "true"},
            "the input push-if-better has no effect on eval; it is for run predict",
        ),
        (
            {"command": "run", "recipe": "r", "push-if-better": "yes%0A\n::error::x"},
            "the input push-if-better is true or false",
        ),
    ):
        result = runner.action("hubextrap", inputs)
        assert (result.code, result.log) == (2, f"::error::hubextrap: {message}\n")


def test_ci_targets_are_there(runner: Any) -> None:
    root = Path(__file__).parents[2]
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (runner.workspace / name).symlink_to(root / name)
    runner.environment = {"MAKEFLAGS": "-n"}
    job = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["make"]
    for target in job["strategy"]["matrix"]["target"]:
        ran = runner.job("ci.yml", "make", matrix={"target": target})
        assert ran.code == 0
        (_, _), (_, python) = ran.used
        assert bool(python["cache"]) == ("pip install" in ran.log), target
    assert runner.job("ci.yml", "make", matrix={"target": "tset"}).code == 2


NEEDS = {
    "recipes": {"outputs": {"changed": '["x"]', "pushing": '["x"]'}},
    "build": {"outputs": {"sha256": "0" * 64}},
}


def needs(found: Any) -> dict[str, Any]:
    return {"recipes": {"outputs": found.outputs}}


def run_merge(runner: Any, secrets: dict[str, str]) -> Any:
    return runner.job(
        "merge.yml",
        "merge",
        github=PUSH,
        needs=NEEDS,
        matrix={"recipe": "merge_configs/mine.yaml"},
        secrets=secrets,
    )
