"""`hubextrap` as a wheel installs it, far from its sources: a shipped recipe works, or says what it lacks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT, Warm

pytestmark = pytest.mark.slow
RECIPES = sorted((ROOT / "merge_configs").glob("*.yaml"))


def named(content: Any) -> set[str]:
    """What a recipe names of the bundled run and its tasks."""
    if isinstance(content, dict | list):
        parts = content.values() if isinstance(content, dict) else content
        return {name for part in parts for name in named(part)}
    return {word for word in str(content).split() if word.startswith("demo/")}


CONTENTS = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES}
MERGED = {name: content for name, content in CONTENTS.items() if not {"reground", "watch"} & content.keys()}
BUNDLED = [name for name, content in MERGED.items() if named(content) and name != "demo"]
"""demo.yaml reads a Hub, which `make demo` starts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def installed(wheel: Path, folder: Path) -> Iterator[Warm]:
    """The wheel's `hubextrap`, in an empty folder; one recipe more tells it from a checkout's."""
    site = shutil.copytree(wheel, folder / "site-packages")
    (site / "hubextrap" / "merge_configs" / "only_here.yaml").write_text("# Only here.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(site))
        warm = Warm(folder)
    yield warm
    warm.close()


@pytest.fixture(autouse=True)
def _empty(folder: Path) -> Iterator[None]:
    yield
    for path in folder.iterdir():
        if path.suffix == ".yaml":
            path.unlink()
        elif path.name == "demo":
            shutil.rmtree(path)


def test_it_is_the_wheel_that_runs(installed: Warm) -> None:
    listed = installed.run("recipes", "ls").output
    assert [line.split()[0] for line in listed.splitlines()] == sorted([*CONTENTS, "only_here"])


@pytest.mark.parametrize("name", CONTENTS)
def test_a_copy_says_what_is_not_here(name: str, installed: Warm, folder: Path) -> None:
    done = installed.run("recipes", "cp", name)
    copy = folder / f"{name}.yaml"
    assert done.code == 0
    first, *said = done.output.splitlines()
    assert first == copy.name
    assert copy.read_bytes() == (ROOT / "merge_configs" / copy.name).read_bytes()
    assert bool(said) == bool(named(CONTENTS[name]))
    lines = copy.read_text().splitlines()
    found = dict(re.findall(r"(demo/\S+) \(line (\d+)\)", "".join(said)))
    assert set(found) == named(CONTENTS[name])
    for what, line in found.items():
        assert what in lines[int(line) - 1]
    assert installed.run("recipes", "validate", copy.name).output == f"{copy.name}: ok\n"


@pytest.mark.parametrize("name", MERGED)
def test_a_plan_without_it_names_it(name: str, installed: Warm) -> None:
    installed.run("recipes", "cp", name)
    done = installed.run("plan", f"{name}.yaml")
    assert done.code == 1
    asked = named(MERGED[name]) or {MERGED[name]["trajectory"]["repo"]}
    assert any(done.output.startswith(f"error: {what}: ") for what in asked), done.output


@pytest.mark.parametrize("name", BUNDLED)
def test_a_plan_with_it_finds_no_problem(name: str, installed: Warm, folder: Path) -> None:
    """In the unpacked source distribution, which the copy speaks of."""
    shutil.copytree(ROOT / "demo", folder / "demo")
    assert installed.run("recipes", "cp", name).output == f"{name}.yaml\n"
    done = installed.run("plan", f"{name}.yaml")
    assert "no problems found" in done.output, done.output
    assert done.code == 0
