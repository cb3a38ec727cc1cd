"""What .ci/release.py compares before a release, with each fault that it is there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

CHANGELOG = "# Changelog\n\n## [1.2.0] - 2026-02-01\n- a\n\n## [1.1.9] - 2026-01-01\n- b\n"
URLS = '[project.urls]  # a note\nHomepage = "https://github.com/me/x"\nIssues = "https://github.com/me/x/issues"\n'


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources of version 1.2.0, in which all fits."""
    for folder in (".ci", "hubextrap"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "release.py", tmp_path / ".ci")
    (tmp_path / "hubextrap" / "_version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "pyproject.toml").write_text(f"{URLS}\n[tool.x]\n")
    return tmp_path


def said(sources: Path, *arguments: str) -> str:
    """What the script says, "" if all is well."""
    command = [sys.executable, "-I", str(sources / ".ci" / "release.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


RELEASE = ("--tag", "v1.2.0", "--repository", "me/x")


def test_these_sources_fit() -> None:
    assert said(ROOT) == ""


def test_a_release_that_fits(sources: Path) -> None:
    assert said(sources) == ""
    assert said(sources, *RELEASE) == ""


def test_between_releases_the_next_changes_stand_above(sources: Path) -> None:
    (sources / "CHANGELOG.md").write_text(
        CHANGELOG.replace("## [1.2.0]", "## [Unreleased]\n- c\n\n## [1.2.0]")
    )
    assert said(sources) == ""
    assert "changes stand under [Unreleased]" in said(sources, *RELEASE)


@pytest.mark.parametrize("tag", ["1.2.0", "v1.2", "v1.1.9", "v1.2.1", "v1.2.0rc1", ""])
def test_a_tag_of_another_version(tag: str, sources: Path) -> None:
    assert f"the tag is {tag}, the version 1.2.0" in said(sources, "--tag", tag, "--repository", "me/x")


@pytest.mark.parametrize("repository", ["me/y", "me/xx", "OWNER/x"])
def test_addresses_of_another_repository(repository: str, sources: Path) -> None:
    assert "https://github.com/me/x is not of" in said(sources, "--tag", "v1.2.0", "--repository", repository)


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("hubextrap/_version.py", "1.2.0", "1.3.0", "says 1.3.0, the newest heading of CHANGELOG.md 1.2.0"),
        ("hubextrap/_version.py", "1.2.0", "1.2", "'1.2' is not X.Y.Z"),
        ("hubextrap/_version.py", "__version__", "version", "nothing like"),
        ("CHANGELOG.md", "## [1.2.0] - 2026-02-01\n", "", "newest heading of CHANGELOG.md 1.1.9"),
        ("CHANGELOG.md", " - 2026-02-01", "", "is not '[X.Y.Z] - YYYY-MM-DD'"),
        ("CHANGELOG.md", "[1.1.9]", "[1.2.1]", "do not descend"),
        ("CHANGELOG.md", "[1.1.9]", "[1.2.0]", "do not descend"),
        ("CHANGELOG.md", "## [1.1.9]", "## [Unreleased]\n\n## [1.1.9]", "is not its first heading"),
        ("CHANGELOG.md", CHANGELOG, "# Changelog\n", "newest heading of CHANGELOG.md none"),
    ],
)
def test_a_fault_is_named(file: str, old: str, new: str, problem: str, sources: Path) -> None:
    content = (sources / file).read_text()
    assert old in content
    (sources / file).write_text(content.replace(old, new))
    assert problem in said(sources)
