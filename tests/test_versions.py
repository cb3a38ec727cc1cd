"""The bounds in pyproject.toml, the lowest versions read off them, and the set that the tests run with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOWEST = ROOT / ".ci" / "lowest.py"


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
