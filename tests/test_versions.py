"""The bounds in pyproject.toml, the lowest versions read off them, the set that tests run with; Pythons."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOWEST = ROOT / ".ci" / "lowest.py"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which hatchling brings

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def constraints(text: str) -> dict[str, str]:
    pairs = (line.split("==") for line in text.splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def lowest() -> dict[str, str]:
    command = [sys.executable, str(LOWEST)]
    return constraints(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_every_requirement_has_a_lowest_version() -> None:
    found = lowest()
    assert {"torch", "transformers", "huggingface-hub", "lm-eval", "pytest"} <= found.keys()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in found.items():
        assert re.search(rf'"{name}(\[[a-z,]+\])?>={re.escape(version)}"', text, re.IGNORECASE), name


def test_a_requirement_without_one_is_an_error() -> None:
    read = run_path(str(LOWEST))["lowest"]
    text = '[project]\ndependencies = ["a>=1.2"]\n[project.optional-dependencies]\nx = [{}]\n'
    assert read(text.format('"hubextrap[y]", "B[c,d]>=3"')) == ["a==1.2", "B==3"]
    with pytest.raises(ValueError, match=r"'b<3' is not name>=version"):
        read(text.format('"b<3"'))
    with pytest.raises(ValueError, match="'b' is not name>=version"):
        read(text.format('"b"'))


def test_the_set_that_the_tests_run_with_is_within_the_bounds() -> None:
    pinned = constraints((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for name, version in lowest().items():
        assert Requirement(f"{name}>={version}").specifier.contains(pinned[name]), name


def test_pythons_agree() -> None:
    """What pyproject.toml promises is what CI runs, and what the linters check for is the lowest of it."""
    classifiers = PYPROJECT["project"]["classifiers"]
    said = [text.rpartition(" ")[2] for text in classifiers if re.search(r":: 3\.\d+$", text)]
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert ci["python"]["strategy"]["matrix"]["python"] == said
    assert "test-lowest" in ci["make"]["strategy"]["matrix"]["target"]
    minors = [int(version.removeprefix("3.")) for version in said]
    assert minors == list(range(minors[0], minors[-1] + 1))
    allowed = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert [minor for minor in range(minors[-1] + 1) if f"3.{minor}.0" in allowed] == minors
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py3{minors[0]}"
    assert f"VERMIN := --target={said[0]}- " in MAKEFILE
    assert f"(3.{minors[0]} or later)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{said[0]} to {said[-1]}" in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def test_no_annotation_is_a_bare_class_variable() -> None:
    """Python 3.10 cannot evaluate it, and pydantic evaluates the annotations of our dataclasses."""
    for module in (ROOT / "hubextrap").rglob("*.py"):
        assert not re.search(r": (ClassVar|Final)\b(?!\[)", module.read_text(encoding="utf-8")), module


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("vermin", "import tomllib"),
        ("vermin", "from datetime import UTC"),
        ("vermin", "from typing import Self"),
        ("vermin", "from itertools import batched"),
        ("ruff", "x = ExceptionGroup"),
        ("ruff", "def f(*x: *T): pass"),
        ("ruff", "try: pass\nexcept* OSError: pass"),
        ("ruff", "def f[T](x: T) -> T: return x"),
    ],
)
def test_lint_finds_what_only_later_pythons_have(program: str, line: str, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name(program)
    if not command.is_file():
        pytest.skip(f"{program} is not installed; the dev extra has it")
    vermin = re.findall(r"^VERMIN := (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    ruff = ["check", "--no-cache", "--config", ROOT / "pyproject.toml", "--select", "F821"]
    for text, code in ((f"{line}\n", 1), ("import json\n", 0)):
        (tmp_path / "later.py").write_text(text)
        options = vermin if program == "vermin" else ruff
        done = subprocess.run([command, *options, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout
