"""The sources as git has them, and what hatchling builds from them, without an index."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, source_files

STRAY = (
    ".env",
    "notes.txt",
    ".venv/lib/x.py",
    ".demo/run/x.json",
    "out/model.safetensors",
    "hubextrap/x.pyc",
)
"""What lies about in a folder in which somebody works, and belongs in no distribution."""


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of the sources."""
    return source_files(tmp_path_factory.mktemp("git") / "git")


@pytest.fixture(scope="session")
def sources(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of them, with stray files among them."""
    folder = tmp_path_factory.mktemp("sources")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in STRAY:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stray")
    return folder


@pytest.fixture(scope="session")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.unpack_archive(build("sdist", sources, folder), folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: what an installation has in site-packages."""
    return unpacked_wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of the source distribution, unpacked."""
    return unpacked_wheel(sdist, tmp_path_factory.mktemp("wheel-of-sdist"))


def unpacked_wheel(sources: Path, folder: Path) -> Path:
    target = folder / "site-packages"
    shutil.unpack_archive(build("wheel", sources, folder), target, "zip")
    return target


def build(kind: str, sources: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = (path for path in folder.iterdir() if path.is_file())
    return built
