"""Tests of a part that is not installed are skipped, visibly; none of them is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PARTS = {
    "mergekit": "tests/mergekit_plugin",
    "lm_eval": "tests/evaluate",
    "matplotlib": "tests/report",
    "trl": "tests/reground/callback",
}
RUN = "import sys, pytest; sys.modules.update(dict.fromkeys({packages})); sys.exit(pytest.main({arguments}))"


def without(packages: list[str], *places: str) -> tuple[int, str]:
    """How pytest ends where packages cannot be imported, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(packages=packages, arguments=["-q", *places])],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_skipped() -> None:
    code, output = without(list(PARTS), *PARTS.values())
    assert code == 5, output  # no tests ran
    for package in PARTS:
        assert f": {package} not installed\n" in output
    assert "rror" not in output


@pytest.mark.slow
def test_what_all_tests_need_is_named() -> None:
    code, output = without(["pygit2"], "tests/localhub")
    assert code == 4
    assert "the tests need what hubextrap[dev] brings: the local hub needs pygit2" in output
    assert "Traceback" not in output
