"""Every help at 80 columns: nothing broken in two, examples that work, and an address that is a page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

import pytest
import typer
from command_lines import Ground, commands, run_main
from harness import ROOT

from hubextrap.addresses import DOCUMENTATION
from hubextrap.cli.app import app
from hubextrap.cli.examples import EXAMPLES
from hubextrap.localhub import LocalHub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which hatchling brings

PASSED_ON = ("lm-eval", "mergekit-yaml")
GROUPS = ("", "hub", "recipes")
OWN = [words for words in EXAMPLES if words not in PASSED_ON]
LINES = [pytest.param(words, line, id=line) for words, (_, lines) in EXAMPLES.items() for line in lines]
NOT_HERE = {
    "--tasks gsm8k": "downloads a data set",
    "hub serve": "serves until it is stopped",
    "reground loop.yaml": "trains",
    "watch ./run --out watched": "follows the run until it is stopped",
    "--evaluation results.json": "needs an evaluation",
    "mergekit-yaml": "needs a config, see tests/mergekit_plugin",
    "--slurm": "needs a cluster, see tests/executors/test_slurm.py",
    "--jobs": "needs a Hub that runs jobs, see tests/executors/test_jobs.py",
    ".partial/work": "needs what was submitted, see tests/work/test_handing_over.py",
}
"""What of a line keeps it from being run here, and why."""
SLOW = ("eval", "sweep", "walk", "generate", "report", "watch")


def arguments(line: str) -> list[str]:
    program, *given = shlex.split(line)
    assert program == "hubextrap"
    return given


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == {*GROUPS, *commands()}
    for words, (_, lines) in EXAMPLES.items():
        assert lines
        if words not in GROUPS:
            assert any(arguments(line)[: len(words.split())] == words.split() for line in lines)


@pytest.mark.parametrize("words", OWN)
def test_a_help_at_80_columns(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every option and argument the name, and what it takes, stand in one piece."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run_main(*words.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    whole = set(re.split(r"[\s{}]+", shown.out))
    for parameter in commands()[words].params if words in commands() else ():
        if parameter.param_type_name == "option":
            assert {*parameter.opts, *parameter.secondary_opts} <= whole
        if parameter.metavar:
            assert parameter.metavar in whole
    page, lines = EXAMPLES[words]
    assert all(f"   {line}\n" in shown.out for line in lines)
    assert shown.out.rstrip().endswith(f"More: {DOCUMENTATION}" + (f"/{page}.md" if page else ""))


def test_as_a_whole_process() -> None:
    line = [sys.executable, "-m", "hubextrap", "merge", "--help"]
    shown = subprocess.run(
        line, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, check=True
    )
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert shown.stdout.rstrip().endswith(f"More: {DOCUMENTATION}/recipes.md")
    assert "   hubextrap merge recipe.yaml --out predicted\n" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", PASSED_ON)
def test_the_help_of_another_program_ends_so_too(words: str) -> None:
    pytest.importorskip({"lm-eval": "lm_eval", "mergekit-yaml": "mergekit"}[words])
    line = [sys.executable, "-m", "hubextrap", words, "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True)
    assert EXAMPLES[words][1][0] in shown.stdout


def test_the_pages_are_there_and_the_address_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Documentation"] == DOCUMENTATION
    for page, _ in EXAMPLES.values():
        assert not page or (ROOT / "docs" / f"{page}.md").is_file()
    package = "\n".join(file.read_text("utf-8") for file in (ROOT / "hubextrap").rglob("*.py"))
    for page in re.findall(r'\bpage\("([\w/-]+)"\)', package):
        assert (ROOT / "docs" / f"{page}.md").is_file()


@pytest.mark.parametrize(("words", "line"), LINES)
def test_an_example_parses(words: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    context = command.make_context("hubextrap", [], resilient_parsing=True)
    given = arguments(line)
    assert given[: len(words.split())] == words.split() or words in (*GROUPS, "reground")
    while hasattr(command, "resolve_command"):
        name, command, given = command.resolve_command(context, given)
        is_group = hasattr(command, "resolve_command")
        context = command.make_context(
            name, [] if is_group else given, parent=context, resilient_parsing=is_group
        )


def as_run(line: str) -> list[Any]:
    slow = [pytest.mark.slow] if arguments(line)[0] in SLOW else []
    return [pytest.param(line, id=line, marks=slow)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        one
        for line in dict.fromkeys(line for _, lines in EXAMPLES.values() for line in lines)
        if not any(part in line for part in NOT_HERE)
        for one in as_run(line)
    ],
)
def test_an_example_works(line: str, ground: Ground, hub: LocalHub) -> None:
    run, model = ground.repo, f"{ground.repo}-made"
    if "me/my-run" in line:
        hub.create_repo(run)
        for folder in sorted((ground.folder / "run").iterdir()):
            hub.commit(run, {file.name: file for file in folder.iterdir()}, revision=folder.name)
    if "verify" in line or "eval" in line:
        hub.create_repo(model)
        merged = {file.name: file for file in (ground.folder / "merged").iterdir()}
        hub.commit(model, merged, revision="step_60")
    if "./predicted" in line:
        shutil.copytree(ground.folder / "merged", ground.folder / "predicted")
    if arguments(line)[0] == "scan":
        (ground.folder / "scan.safetensors").unlink()
    if arguments(line)[0] in ("run", "sweep", "walk"):
        problem = (ground.folder / "problems.jsonl").read_text()
        (ground.folder / "problems.jsonl").write_text(problem * 4)
        ground.recipe(evaluate={"task_files": "problems.jsonl", "max_tokens": 4})
    given = [part.replace("me/my-run", run).replace("me/my-model", model) for part in arguments(line)]
    ended = run_main(*given)
    assert ended.code == 0, ended
