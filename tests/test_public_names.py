"""The names of the package: complete, sorted, importable in any order, and listed once for each reader."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from command_lines import commands

import hubextrap
from hubextrap import api

PACKAGE = Path(hubextrap.__file__).parent
VERBS = {
    "backtest", "complete", "evaluate", "merge", "plan", "push", "reground", "report", "run", "scan", "sweep",
    "verify", "walk", "watch",
}  # fmt: skip
"""What the commands do, as functions."""
OPTIONS = {
    "Answering",
    "EvaluationOptions",
    "LogProbRequest",
    "PushTarget",
    "Sampling",
    "TaskFile",
    "TrajectoryOptions",
}
INITS = sorted(PACKAGE.rglob("__init__.py"))
LAZY = [init for init in INITS if "names_of(__name__)" in init.read_text(encoding="utf-8")]


CALLED = {"steps": "find_trajectory", "eval": "evaluate", "generate": "complete"}
"""Verbs of the command line that are called otherwise in Python."""
NO_FUNCTION = {"lm-eval", "mergekit-yaml", "hub serve", "recipes ls", "recipes cp", "recipes validate"}


def test_every_verb_is_a_function_of_the_package() -> None:
    verbs = {CALLED.get(words, words) for words in commands() if words not in NO_FUNCTION}
    assert {name for name in verbs if not callable(getattr(hubextrap, name, None))} == set()
    assert verbs - set(hubextrap.__all__) == set()


def package_of(init: Path) -> str:
    return ".".join(init.parent.relative_to(PACKAGE.parent).parts)


def test_all_is_sorted_and_complete() -> None:
    assert hubextrap.__all__ == sorted(set(hubextrap.__all__))
    assert set(hubextrap.__all__) >= VERBS
    assert OPTIONS | {"Recipe", "Scan", "Trajectory", "load_recipe", "parse_recipe"} <= set(hubextrap.__all__)
    of_the_api = {name for name in api.__all__ if name[0].isupper() and name.endswith(("Result", "Report"))}
    assert of_the_api <= set(hubextrap.__all__)


def test_the_page_lists_every_name() -> None:
    page = (PACKAGE.parent / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.partition("\n## hubextrap\n")[2].partition("\n## ")[0]
    for name in set(hubextrap.__all__) - {"__version__"}:
        assert f"- `{name}`:" in section


@pytest.mark.parametrize("init", INITS, ids=package_of)
def test_no_name_is_a_module_s(init: Path) -> None:
    """Whoever imports the module would put it in the place of the name."""
    names = getattr(import_module(package_of(init)), "__all__", [])
    modules = {path.stem for path in init.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    imported = {
        alias.name: node.module
        for node in ast.parse(init.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name in modules & set(names):  # imported there and then, it stays what it is
        assert imported[name] == f"{package_of(init)}.{name}"


@pytest.mark.parametrize("init", LAZY, ids=package_of)
def test_lazy_names_stand_in_an_import_and_in_all(init: Path) -> None:
    source = init.read_text(encoding="utf-8")
    module = import_module(package_of(init))
    imported = [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hubextrap.")
        for alias in node.names
        if alias.name != "names_of"
    ]
    assert len(imported) == len(set(imported))
    assert set(module.__all__) - set(imported) <= {"__version__"}
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert source.count(f'"{name}"') == 1
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        module.absent  # noqa: B018


@pytest.mark.slow
def test_names_are_those_of_their_homes_whatever_was_imported_first() -> None:
    program = (
        "import importlib, pkgutil, hubextrap\n"
        "first = {name: getattr(hubextrap, name) for name in hubextrap.__all__}\n"
        "for _, name, _ in pkgutil.iter_modules(hubextrap.__path__):\n"
        "    if not name.startswith('_') and name not in ('mergekit_plugin', 'lm_eval_plugin'):\n"
        "        importlib.import_module(f'hubextrap.{name}')\n"
        "for name, thing in first.items():\n"
        "    assert getattr(hubextrap, name) is thing, name\n"
        "    assert name[0].isupper() or name == '__version__' or callable(thing), name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
