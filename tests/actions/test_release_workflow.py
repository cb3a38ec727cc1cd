"""The release workflow, but for what it fetches and publishes: checks, builds, installs, uses."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, source_files

import hubextrap

pytestmark = pytest.mark.slow
TAG = f"v{hubextrap.__version__}"
GITHUB = {"ref_name": TAG, "repository": "me/hf-extrap"}


@pytest.fixture
def released(runner: Any, tmp_path: Path) -> Any:
    """A machine with a checkout of these sources as they are at a release."""
    runner.skipped = ("Install what builds it", "Install what it needs")
    for name in source_files(tmp_path / "git"):
        (runner.workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, runner.workspace / name)
    changelog = runner.workspace / "CHANGELOG.md"
    changelog.write_text(
        re.sub(r"## \[Unreleased\].*?(?=^## )", "", changelog.read_text(), flags=re.M | re.S)
    )
    project = runner.workspace / "pyproject.toml"
    project.write_text(project.read_text().replace("OWNER/", "me/"))
    return runner


def test_what_does_not_fit_is_not_built(released: Any) -> None:
    ran = released.job("release.yml", "build", github={**GITHUB, "ref_name": "v9.9.9"})
    assert ran.code
    assert "the tag is v9.9.9" in ran.log
    assert not (released.temp / "dist").exists()


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_it_is_built_installed_and_used(
    kind: str, released: Any, tmp_path: Path, environment_of: Callable[..., Path]
) -> None:
    """In an environment that has just what the skipped step installs."""
    built = released.job("release.yml", "build", github=GITHUB)
    assert built.code == 0, built.log
    assert len(list((released.temp / "dist").iterdir())) == 2
    site = environment_of("base.txt", *(["build.txt"] if kind == "sdist" else []))
    released.environment["PATH"] = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    released.environment["PYTHONPATH"] = ""
    used = released.job("release.yml", "use", github=GITHUB, matrix={"kind": kind})
    assert used.code == 0, used.log
    assert (site / "hubextrap" / "_version.py").is_file()
    assert (released.temp / "prediction" / "hubextrap.json").is_file()
    wrong = released.job("release.yml", "use", github={**GITHUB, "ref_name": "v9.9.9"}, matrix={"kind": kind})
    assert wrong.code, "the version that was installed is not that of the tag"
