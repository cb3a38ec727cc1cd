"""Workflows run here as a runner would run them: expressions, conditions, run steps by bash, our own action.

Other people's actions (checkout, setup-python, cache, upload-artifact) are only recorded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
OWN = "$/"
DROPPED = ("HF_TOKEN", "HF_OIDC_RESOURCE", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")


def load(path: Path) -> dict[str, Any]:
    """A workflow or action; PyYAML reads the key `on` as true."""
    content: dict[Any, Any] = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in content.items()}


def evaluate(expression: str, contexts: Mapping[str, Any]) -> Any:
    """An expression, of as much of the language as our workflows use."""
    text = re.sub(r"'[^']*'|[A-Za-z_][\w.-]*(?!\w*\()|&&|\|\||!(?!=)", _translate, expression.strip())
    known = {"get": lambda name: _get(name, contexts), "always": lambda: True, "fromJSON": _from_json}
    return eval(text, {"__builtins__": {}}, known)


def _translate(match: re.Match[str]) -> str:
    text = match[0]
    operators = {"&&": " and ", "||": " or ", "!": " not ", "true": "True", "false": "False"}
    if text in operators:
        return operators[text]
    if text.startswith("'") or text in ("always", "fromJSON"):
        return text
    return f"get({text!r})"


def _get(name: str, contexts: Mapping[str, Any]) -> Any:
    value: Any = contexts
    first, *rest = name.split(".")
    assert first in contexts, f"{name}: there is no context {first}"
    value = contexts[first]
    for part in rest:
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return value


def _from_json(text: str) -> Any:
    import json

    return json.loads(text)


def filled(value: object, contexts: Mapping[str, Any]) -> str:
    """A value of env or with, its expressions evaluated, as text."""
    if value is True or value is False:
        return str(value).lower()
    return EXPRESSION.sub(lambda match: _text(evaluate(match[1], contexts)), str(value))


def _text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class Ran:
    """A job that has run."""

    log: str = ""
    code: int = 0
    """Of the first step that failed."""
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Other people's actions with their inputs."""
    left_out: list[str] = field(default_factory=list)
    """Names of the steps that would have run, and were skipped here."""


@dataclass
class Runner:
    """One machine with a checkout in ``workspace``."""

    workspace: Path
    temp: Path
    environment: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ("Install hubextrap", "Install what evaluates", "Install what draws")
    """Names of steps that are left out; installing takes long and is tested once."""
    _ran: Ran = field(default_factory=Ran)

    def job(self, workflow: str, name: str, **contexts: Any) -> Ran:
        """Run a job; contexts as on GitHub: github, inputs, vars, secrets, needs, matrix."""
        content = load(WORKFLOWS / workflow)
        job = content["jobs"][name]
        known = {
            key: {}
            for key in ("github", "inputs", "vars", "secrets", "needs", "matrix", "steps", "env", "strategy")
        }
        known |= {"runner": {"temp": str(self.temp), "os": "Linux"}, **contexts}
        known["inputs"] = self._defaults(content, known["github"]) | known["inputs"]
        known["steps"] = {}
        self._ran = Ran()
        assert evaluate(str(job.get("if", "true")), known), f"{name} does not run"
        shell = content.get("defaults", {}).get("run", {}).get("shell", "")
        self._steps(job["steps"], known, shell)
        self._ran.outputs = {key: filled(value, known) for key, value in job.get("outputs", {}).items()}
        return self._ran

    def runs(self, workflow: str, name: str, **contexts: Any) -> bool:
        """Whether the job's condition holds."""
        return bool(evaluate(str(load(WORKFLOWS / workflow)["jobs"][name].get("if", "true")), contexts))

    def concurrency(self, workflow: str, **contexts: Any) -> str:
        """The group of which one run at a time goes on."""
        return filled(load(WORKFLOWS / workflow)["concurrency"]["group"], contexts)

    def action(self, name: str, inputs: dict[str, str], **github: Any) -> Ran:
        """Run our action alone, as a step of another repository's workflow."""
        self._ran = Ran()
        contexts = {"steps": {}, "github": github}
        step = {"uses": f"{OWN}.github/actions/{name}", "with": inputs, "id": "own"}
        self._steps([step], contexts, "")
        self._ran.outputs = contexts["steps"]["own"]["outputs"]
        return self._ran

    def _defaults(self, content: dict[str, Any], github: Mapping[str, Any]) -> dict[str, str]:
        if github.get("event_name") not in ("workflow_dispatch", "workflow_call"):
            return {}
        trigger = content["on"][github["event_name"]]
        return {key: value.get("default", "") for key, value in trigger.get("inputs", {}).items()}

    def _steps(self, steps: list[dict[str, Any]], contexts: dict[str, Any], shell: str) -> None:
        for step in steps:
            condition = str(step.get("if", "true"))
            if (self._ran.code and "always()" not in condition) or not evaluate(condition, contexts):
                continue
            if step.get("name") in self.skipped:
                self._ran.left_out.append(step["name"])
                continue
            if "uses" in step:
                outputs = self._use(step, contexts)
            else:
                outputs = self._run(step, contexts, step.get("shell", shell))
            if "id" in step:
                contexts["steps"][step["id"]] = {"outputs": outputs}

    def _use(self, step: dict[str, Any], contexts: dict[str, Any]) -> dict[str, str]:
        given = {key: filled(value, contexts) for key, value in step.get("with", {}).items()}
        if not step["uses"].startswith(OWN):
            self._ran.used.append((step["uses"], given))
            return {}
        folder = ROOT / step["uses"].removeprefix(OWN)
        action = load(folder / "action.yml")
        assert set(given) <= set(action["inputs"])
        inputs = {key: value.get("default", "") for key, value in action["inputs"].items()} | given
        inner = {
            "inputs": inputs,
            "steps": {},
            "github": {**contexts["github"], "action_path": str(folder)},
            "runner": {"temp": str(self.temp), "os": "Linux"},
        }
        self._steps(action["runs"]["steps"], inner, "")
        return {key: filled(value["value"], inner) for key, value in action.get("outputs", {}).items()}

    def _run(self, step: dict[str, Any], contexts: dict[str, Any], shell: str) -> dict[str, str]:
        for file in ("output", "summary", "script"):
            (self.temp / file).write_text("")
        (self.temp / "script").write_text(step["run"])
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
        environment |= {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(self.temp / "output"),
            "GITHUB_STEP_SUMMARY": str(self.temp / "summary"),
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self.environment,
        }
        environment |= {key: filled(value, contexts) for key, value in step.get("env", {}).items()}
        options = ["--noprofile", "--norc", "-eo", "pipefail"] if shell == "bash" else ["-e"]
        done = subprocess.run(
            ["bash", *options, str(self.temp / "script")],
            cwd=self.workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self._ran.log += done.stdout
        self._ran.code = self._ran.code or done.returncode
        self._ran.summary += (self.temp / "summary").read_text()
        lines = (self.temp / "output").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def git() -> Callable[..., str]:
    """Run git in a folder."""

    def run(folder: Path, *arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "init.defaultBranch=main"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


@pytest.fixture
def environment_of(tmp_path: Path) -> Callable[..., Path]:
    """Make a virtual environment that has pip and the packages of some of the action's files, and no others.

    They are links to what is installed here: nothing is fetched. Returns its site-packages.
    """

    def make(*files: str) -> Path:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
        _link("pip", site)
        for file in files:
            for line in (ROOT / ".github" / "actions" / "hubextrap" / file).read_text().splitlines():
                if not line.startswith("#"):
                    _link(line.partition("==")[0], site)
        return site

    return make


def _link(package: str, site: Path) -> None:
    installed = distribution(package)
    for name in {path.parts[0] for path in installed.files or ()} - {"..", "__pycache__"}:
        if not (site / name).exists():  # two files name packaging
            (site / name).symlink_to(str(installed.locate_file(name)))


@pytest.fixture
def runner(tmp_path: Path, git: Callable[..., str]) -> Runner:
    """A machine whose checkout is a fresh git repository with the folder merge_configs."""
    workspace, temp = tmp_path / "work", tmp_path / "runner"
    (workspace / "merge_configs").mkdir(parents=True)
    temp.mkdir()
    git(workspace, "init", "--quiet")
    git(workspace, "commit", "--quiet", "--allow-empty", "-m", "start")
    return Runner(workspace, temp)
