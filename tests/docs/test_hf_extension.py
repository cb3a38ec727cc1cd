"""What `hf` expects of an extension, asked of the installed huggingface_hub; no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import ROOT, source_files

import hubextrap

BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder in which `hf extensions install me/hf-extrap` has been run."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-extrap"
    folder.mkdir(parents=True)
    manifest = {
        "owner": "me",
        "repo": "hf-extrap",
        "repo_id": "me/hf-extrap",
        "short_name": "extrap",
        "executable_path": str(BIN / "hf-extrap"),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def hf(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    return subprocess.run(
        [BIN / "hf", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_repository_name_gives_the_command() -> None:
    from huggingface_hub.cli import extensions

    assert extensions._normalize_repo_id("me/hf-extrap") == ("me", "hf-extrap", "extrap")
    assert extensions._get_executable_name("extrap").removesuffix(".exe") == "hf-extrap"
    assert not (ROOT / "hf-extrap").exists()  # hf would take such a file for the whole extension


def test_no_command_of_hf_is_in_the_way() -> None:
    done = subprocess.run([BIN / "hf", "--help"], capture_output=True, text=True, check=True)
    assert "extrap" not in done.stdout


def test_hf_runs_it(home: Path) -> None:
    done = hf(home, "extrap", "--version")
    assert (done.returncode, done.stdout) == (0, f"hubextrap {hubextrap.__version__}\n")
    assert "hf extrap" in hf(home, "extensions", "list").stdout


def test_arguments_and_exit_codes_pass_through(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_metod: two_point\n")
    done = hf(home, "extrap", "recipes", "validate", str(recipe))
    assert done.returncode == 1
    assert "did you mean merge_method?" in done.stderr
    assert hf(home, "extensions", "exec", "extrap", "--", "plan").returncode == 2


@pytest.mark.slow
def test_the_archive_installs_the_script(tmp_path: Path) -> None:
    """What `hf` does with the branch's archive, but without the dependencies, which are here already."""
    archive, target = tmp_path / "HEAD.zip", tmp_path / "site"
    with zipfile.ZipFile(archive, "w") as file:
        for name in source_files(tmp_path / "git"):
            file.write(ROOT / name, f"hf-extrap-HEAD/{name}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    flags = ["--no-deps", "--no-index", "--no-build-isolation", f"--target={target}", str(archive)]
    subprocess.run([*pip, *flags], check=True, capture_output=True)
    script = target / "bin" / "hf-extrap"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for arguments in (["--version"], ["recipes", "ls"]):
        done = subprocess.run(
            [script, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "two_point" in done.stdout
