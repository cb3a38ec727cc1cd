"""CONTRIBUTING.md's tasks, done in a copy of the package as the page says: each is one file and one table."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance import check_source
from harness import ROOT, Warm, weights_read

from hubextrap.localhub import LocalHub

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
RUN = ROOT / "demo" / "data" / "rlvr-C"
TASKS = ("method", "checkpoint layout", "source", "executor")
RECIPE = "trajectory: {{repo: {repo}}}\nmerge_method: {method}\nparameters: {{target_step: 500}}\n"


def blocks(task: str, language: str) -> list[tuple[str, str]]:
    """File and text of each code block of a task; the first line of each names the file."""
    found = re.search(rf"^## Add an? {task}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    pattern = rf"^```{language}\n(?:#|---) (\S+)\n(.*?)^```"
    return re.findall(pattern, found[1], re.MULTILINE | re.DOTALL)


def do(task: str, site: Path) -> None:
    """Follow the page in the package that lies in ``site``."""
    for file, text in blocks(task, "python"):
        assert not (site / file).exists(), "a new file"
        (site / file).write_text(text)
    for file, text in blocks(task, "diff"):
        lines = text.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        after = "\n".join(line[1:] for line in lines if line[0] != "-")
        content = (site / file).read_text()
        assert content.count(before) == 1, f"{file} has other lines around:\n{text}"
        (site / file).write_text(content.replace(before, after))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which all tasks are done."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "hubextrap", site / "hubextrap", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", site)  # ruff's settings
    for task in TASKS:
        do(task, site)
    return site


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_one_new_file_and_one_registration(task: str) -> None:
    assert len(blocks(task, "python")) == 1
    assert len({file for file, _ in blocks(task, "diff")}) == 1
    lines = [line for _, text in blocks(task, "diff") for line in text.splitlines()]
    assert 1 <= len([line for line in lines if line[0] == "+" and line != "+"]) <= 2, "a line, and its import"


def test_what_is_added_follows_the_house_s_style(site: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", site],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


Command = Callable[..., str]


@pytest.fixture(scope="module")
def warm(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The copy's `hubextrap`."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site), prepend=":")
        warm = Warm(folder)
    yield warm
    warm.close()


@pytest.fixture
def command(warm: Warm) -> Command:
    """Run the copy's `hubextrap`; what it prints."""

    def run(*arguments: str | Path) -> str:
        done = warm.run(*arguments)
        assert done.code == 0, done.output
        return done.output

    return run


def recipe(folder: Path, repo: str | Path, method: str) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE.format(repo=repo, method=method))
    return folder / "recipe.yaml"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_the_method_merges(command: Command, tmp_path: Path) -> None:
    command("merge", recipe(tmp_path, RUN, "secant"), "--out", tmp_path / "new")
    steps = sorted(int(path.name.removeprefix("step_")) for path in RUN.glob("step_*"))
    same = recipe(tmp_path, RUN, "two_point")
    same.write_text(same.read_text().replace("500}", f"500, base_step: {steps[-2]}}}"))
    command("merge", same, "--out", tmp_path / "old")
    assert shards(tmp_path / "new") == shards(tmp_path / "old") != {}


@pytest.mark.slow
def test_the_layout_is_found(command: Command, warm: Warm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, step in (("warm-up", 100), ("middle", 200), ("final", 400)):
        shutil.copytree(RUN / f"step_{step}", run / name)
    assert warm.run("steps", run).code == 1  # no name says a step
    (run / "steps.txt").write_text("100 warm-up\n400 final\n200 middle\n")
    listed = command("steps", run).splitlines()
    assert [line.split()[0] for line in listed if line.split()[0].isdecimal()] == ["100", "200", "400"]
    command("merge", recipe(tmp_path, run, "persistence"), "--out", tmp_path / "out")
    (run / "steps.txt").write_text("100 warm-up\n400 ../final\n")
    refused = warm.run("steps", run)
    assert refused.code == 1
    assert "steps.txt, line 2" in refused.output


@pytest.mark.slow
def test_the_source_feeds_a_merge(
    command: Command, warm: Warm, tmp_path: Path, hub: LocalHub, repo_id: str, token: str
) -> None:
    hub.create_repo(repo_id)
    archives = tmp_path / "archives"
    archives.mkdir()
    for step in (100, 200):
        files = {path.name: path.read_bytes() for path in (RUN / f"step_{step}").iterdir() if path.is_file()}
        commit = hub.commit(repo_id, files, revision=f"step_{step}")
        with tarfile.open(archives / f"{commit}.tar", "w") as archive:
            for path in (RUN / f"step_{step}").iterdir():
                archive.add(path, path.name)
    command("merge", recipe(tmp_path, repo_id, "two_point"), "--out", tmp_path / "ranges")
    assert weights_read(hub)
    hub.requests.clear()
    warm.environment["HUBEXTRAP_ARCHIVES"] = str(archives)
    command("merge", recipe(tmp_path, repo_id, "two_point"), "--out", tmp_path / "archived")
    assert not weights_read(hub)
    assert shards(tmp_path / "archived") == shards(tmp_path / "ranges") != {}


@pytest.mark.slow
def test_the_executor_does_the_work(command: Command, tmp_path: Path) -> None:
    line = ["merge", recipe(tmp_path, RUN, "two_point"), "--out"]
    assert "model.safetensors: 0." in command(*line, tmp_path / "one", "--executor", "timed")
    assert "model.safetensors: 0." not in command(*line, tmp_path / "two")
    assert shards(tmp_path / "one") == shards(tmp_path / "two") != {}


def test_the_source_passes_the_suite(site: Path, tmp_path: Path) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("archives", site / "hubextrap" / "tensors" / "archives.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    files = {"model.safetensors": bytes(range(256)) * 8, "config.json": b"{}", "empty.txt": b""}
    for folder in ("", "step_1"):
        place = tmp_path / f"files{folder}" / folder
        place.mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / f"files{folder}", "")
        check_source(module.ArchiveSource(tmp_path / "x.tar", folder, "x"), files)
