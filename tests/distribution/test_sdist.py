"""The source distribution holds what git tracks and nothing else, and works like a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

READ_THE_TREE = (
    "tests/recipe/test_shipped.py",
    "tests/docs/test_docs.py",
    "tests/docs/test_readme.py",
    "tests/actions/test_workflow_files.py",
    "tests/distribution",
)
"""Tests that need files of the sources: recipes, bundled checkpoints, pages, workflows, what builds it."""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_holds_all_that_git_tracks_and_nothing_else(sdist: Path, sources: Path, names: list[str]) -> None:
    assert files(sdist) == {*names, "PKG-INFO"}
    for name in names:
        assert (sdist / name).read_bytes() == (sources / name).read_bytes()
        assert os.access(sdist / name, os.X_OK) == os.access(sources / name, os.X_OK)


def test_the_wheel_that_is_made_of_it_is_the_same(wheel_of_sdist: Path, wheel: Path) -> None:
    assert files(wheel_of_sdist) == files(wheel)
    for name in files(wheel):
        assert (wheel_of_sdist / name).read_bytes() == (wheel / name).read_bytes()


@pytest.mark.slow
def test_tests_pass_in_it(sdist: Path) -> None:
    """Of the whole suite, those that read files of the source tree."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *READ_THE_TREE,
    ]
    environment = os.environ | {"PYTHONPATH": str(sdist)}
    done = subprocess.run(command, cwd=sdist, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
