"""The action installs what its command and its recipe need and no more; a cache holds what its name says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT
from huggingface_hub import HfApi

from hubextrap.localhub import LocalHub

ACTION = ROOT / ".github" / "actions" / "hubextrap"
STEPS = yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]
RUN = "/data/run"
RECIPE: dict[str, Any] = {
    "trajectory": {"repo": RUN},
    "merge_method": "two_point",
    "parameters": {"target_step": 400, "base_step": 100},
}
RECIPES = {
    "merges.yaml": RECIPE,
    "-x $(touch pwned).yaml": RECIPE,
    "measures.yaml": RECIPE | {"evaluate": {"tasks": ["gsm8k"]}},
    "mixes.yaml": RECIPE | {"evaluate": {"tasks": ["gsm8k"]}, "space": "logits"},
    "walks.yaml": RECIPE | {"parameters": {"target_step": {"up_to": 400, "prompts": "prompts.jsonl"}}},
    "mistaken.yaml": RECIPE | {"evaluate": {"tasks": ["gsm8k"]}, "merge_metod": "two_point"},
}


def installed(runner: Any, **inputs: str) -> tuple[list[str], list[str]]:
    """The steps that would install, and the names of the caches that they install from."""
    runner.skipped = ("Install hubextrap", "Install what evaluates", "Run hubextrap")
    for name, content in RECIPES.items():
        (runner.workspace / name).write_text(yaml.safe_dump(content))
    ran = runner.action("hubextrap", {name.replace("_", "-"): value for name, value in inputs.items()})
    assert ran.code == 0, ran.log
    caches = [given["key"] for action, given in ran.used if action.startswith("actions/cache@")]
    return [name for name in ran.left_out if name.startswith("Install ")], caches


@pytest.mark.parametrize(
    ("inputs", "evaluates"),
    [
        ({}, False),
        ({"extras": "eval"}, True),
        ({"command": "plan", "recipe": "measures.yaml"}, False),
        ({"command": "merge", "recipe": "measures.yaml"}, False),
        ({"command": "merge", "recipe": "merges.yaml", "extras": "eval"}, True),
        ({"command": "merge", "recipe": "merges.yaml", "arguments": "--device\ncpu"}, False),
        ({"command": "merge", "recipe": "merges.yaml", "arguments": "--device\ncuda"}, True),
        ({"command": "plan", "recipe": "merges.yaml", "arguments": "--quiet\n--device=cuda:1"}, True),
        ({"command": "run", "recipe": "merges.yaml"}, False),
        ({"command": "run", "recipe": "-x $(touch pwned).yaml"}, False),
        ({"command": "run", "recipe": "measures.yaml"}, True),
        ({"command": "run", "recipe": "mixes.yaml"}, True),
        ({"command": "plan", "recipe": "walks.yaml"}, True),  # the last checkpoint answers prompts
        ({"command": "merge", "recipe": "walks.yaml"}, True),
        ({"command": "run", "recipe": "walks.yaml"}, True),
        ({"command": "run", "recipe": "mistaken.yaml"}, False),  # the command says what is wrong
        ({"command": "run", "recipe": "not there.yaml"}, False),
        ({"command": "eval", "recipe": "merges.yaml", "tasks": "gsm8k"}, True),
        ({"command": "eval", "reference": "me/model", "tasks": "gsm8k"}, True),
        ({"command": "predict", "run": "me/run", "to": "400"}, False),
        ({"command": "predict", "run": "me/run", "tasks": "gsm8k"}, True),
        ({"command": "predict", "run": "me/run", "arguments": "--walk\nprompts.jsonl"}, True),
        ({"command": "backtest", "run": "me/run"}, False),
        ({"command": "backtest", "recipe": "merges.yaml"}, False),
        ({"command": "scan", "run": "me/run"}, False),
        ({"command": "scan", "run": "me/run", "arguments": "--logprobs\nprompts.jsonl"}, True),
    ],
)
def test_the_command_and_the_recipe_choose(inputs: dict[str, str], evaluates: bool, runner: Any) -> None:
    steps, caches = installed(runner, **inputs)
    assert steps == ["Install hubextrap", *["Install what evaluates"] * evaluates]
    assert len(caches) == len(steps)
    assert not (runner.workspace / "pwned").exists()


def test_a_report_brings_what_draws(runner: Any) -> None:
    runner.skipped = ("Install hubextrap", "Install what draws", "Run hubextrap")
    ran = runner.action("hubextrap", {"command": "report", "run": "me/run"})
    assert (ran.code, ran.left_out) == (0, list(runner.skipped)), ran.log


def test_a_cache_is_named_after_what_is_installed_from_it(runner: Any) -> None:
    """The first job with a name keeps its packages; another set under that name would never be kept."""

    def name(*files: str) -> str:
        return hashlib.sha256(b"".join((ACTION / file).read_bytes() for file in files)).hexdigest()

    _, (built, evaluating) = installed(runner, extras="eval")
    _, (given,) = installed(runner, wheel="wheel")
    assert built.endswith(f"-3.11-{name('base.txt', 'build.txt')}")
    assert given.endswith(f"-3.11-{name('base.txt')}")
    assert evaluating.endswith(f"-3.11-{name('build.txt', 'eval.txt')}")
    paths = [step["with"]["path"] for step in STEPS if step.get("uses", "").startswith("actions/cache@")]
    scripts = [step["run"] for step in STEPS if step.get("name", "").startswith("Install ")]
    caches = [found for script in scripts for found in re.findall(r"--cache-dir ([^\s)]+)", script)]
    assert caches == paths


def test_unknown_extras_are_refused_before_anything_is_installed(runner: Any) -> None:
    ran = runner.action("hubextrap", {"extras": "evla"})
    assert (ran.code, ran.log) == (2, "::error::hubextrap: the input extras is eval or nothing\n")
    assert not ran.left_out


def test_workflows_that_only_merge_install_no_more(runner: Any, tmp_path: Path) -> None:
    """merge.yml's jobs; what it hands to the action asks for the base."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "merge.yml").read_text())["jobs"]
    found = [
        step.get("with", {})
        for job in jobs.values()
        for step in job["steps"]
        if "actions/hubextrap'" in str(step)
    ]
    assert [given.get("command", "") for given in found] == ["", "plan", "merge"]
    for given in found:
        inputs = {key.replace("-", "_"): "" if "${{" in value else value for key, value in given.items()}
        steps, _ = installed(runner, **inputs | ({"recipe": "measures.yaml"} if "recipe" in given else {}))
        assert steps == ["Install hubextrap"]


@pytest.fixture
def bare(runner: Any, environment_of: Callable[..., Path]) -> Any:
    """A machine with the base and these sources, after the installation."""
    site = environment_of("base.txt")
    for name in ("hubextrap", "merge_configs"):
        (site / name).symlink_to(ROOT / name)
    python = site.parents[2] / "bin" / "python"
    command = python.with_name("hubextrap")
    command.write_text(f"#!{python}\nfrom hubextrap.cli.main import main\nmain()\n")
    command.chmod(0o755)
    runner.environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": ""}
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "merge", "run"])
def test_the_base_is_enough_for_a_recipe_that_measures_nothing(
    command: str, bare: Any, hub: LocalHub, repo_id: str, token: str, demo_data: Path
) -> None:
    hub.create_repo(repo_id)
    for step in (0, 100, 200):
        folder = demo_data / "rlvr-C" / f"step_{step}"
        hub.commit(repo_id, {path.name: path for path in folder.iterdir()}, revision=folder.name)
    push = {"repo": f"{repo_id}-predicted", "revision": "step_400"}
    recipe = RECIPE | {"trajectory": {"repo": repo_id}, "push": push}
    (bare.workspace / "mine.yaml").write_text(yaml.safe_dump(recipe))
    ran = bare.action("hubextrap", {"command": command, "recipe": "mine.yaml", "token": token})
    assert ran.code == 0, ran.log
    assert ran.left_out == ["Install hubextrap"]
    said = "no problems found" if command == "plan" else f"at `{push['repo']}@step_400`"
    assert said in ran.summary


@pytest.mark.slow
def test_a_mistake_in_the_recipe_is_said_by_the_command(bare: Any) -> None:
    (bare.workspace / "mine.yaml").write_text(yaml.safe_dump(RECIPES["mistaken.yaml"]))
    ran = bare.action("hubextrap", {"command": "run", "recipe": "mine.yaml"})
    assert ran.code == 1
    assert "merge_metod: unknown key; did you mean merge_method?" in ran.log
    assert "Traceback" not in ran.log


@pytest.mark.slow
def test_a_run_is_answered_by_its_verdict(runner: Any, repo_id: str, token: str, demo_data: Path) -> None:
    """backtest, then predict, which pushes."""
    run = {"run": str(demo_data / "rlvr-C")}
    looked = runner.action("hubextrap", run | {"command": "backtest", "arguments": "--max-step\n200"})
    assert looked.code == 0, looked.log
    assert looked.outputs["verdict"] in ("good", "care", "bad", "unknown")
    assert (looked.outputs["commit"], looked.outputs["results"]) == ("", "")
    assert Path(looked.outputs["summary"]).read_text() == looked.summary
    arguments = f"--max-step\n200\n--push\n{repo_id}@step_400"
    inputs = run | {"command": "predict", "to": "400", "token": token, "arguments": arguments}
    made = runner.action("hubextrap", inputs)
    assert made.code == 0, made.log
    assert made.outputs["verdict"] in ("good", "care", "bad", "unknown")
    assert HfApi(token=token).model_info(repo_id, revision="step_400").sha == made.outputs["commit"]
    assert made.outputs["commit"][:8] in made.log
    kept = runner.action(
        "hubextrap", run | {"command": "predict", "to": "400", "arguments": "--max-step\n200"}
    )
    assert kept.code == 0, kept.log
    assert list(runner.temp.glob("hubextrap.*/prediction/hubextrap.json"))


@pytest.mark.slow
def test_what_fails_is_on_the_page_and_annotated(runner: Any, demo_data: Path) -> None:
    """Whichever command; and whoever the job is to be on the Hub."""
    (runner.workspace / "mistaken.yaml").write_text(yaml.safe_dump(RECIPES["mistaken.yaml"]))
    recipe = {"recipe": "mistaken.yaml"}
    for inputs in (
        recipe | {"command": "plan"},
        recipe | {"command": "merge", "trusted-publisher": "recipe"},
        recipe | {"command": "eval", "tasks": "gsm8k", "min-score": "0.1"},
    ):
        ran = runner.action("hubextrap", inputs)
        assert ran.code == 1, ran.log
        said = "mistaken.yaml:5: merge_metod: unknown key; did you mean merge_method?"
        assert ran.summary == f"❌ {said}\n\n"
        assert f"\n::error file=mistaken.yaml,line=5,title=hubextrap::{said}\n" in ran.log
        assert "Traceback" not in ran.log
        assert (ran.outputs["verdict"], ran.outputs["commit"]) == ("none", "")
        assert Path(ran.outputs["summary"]).read_text() == ran.summary
    ran = runner.action("hubextrap", {"command": "predict", "run": str(demo_data), "arguments": "--oops"})
    assert (ran.code, ran.outputs["verdict"]) == (2, "none")
    assert ran.summary.startswith("❌ No such option: --oops")


@pytest.mark.slow
def test_names_cannot_act_on_the_log(runner: Any, demo_data: Path) -> None:
    """A folder that is called like a command, in the summary that the log repeats: it is printed unread."""
    name = "x##[add-mask]y"
    (runner.workspace / name).symlink_to(demo_data / "rlvr-C")
    ran = runner.action("hubextrap", {"command": "backtest", "run": name})
    assert ran.code == 0, ran.log
    read = []
    pause = ""
    for line in ran.log.splitlines():
        if pause:
            pause = "" if line == f"::{pause}::" else pause
        elif line.startswith("::stop-commands::"):
            pause = line.removeprefix("::stop-commands::")
        else:
            read.append(line)
    assert not pause
    assert not [line for line in read if "##[" in line or line.lstrip().startswith("::")]
    assert ran.summary.strip()
    assert ran.summary.strip() not in "\n".join(read)
