"""What the action installs: each package by the sha256 of its file, from files that name no index."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from harness import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which hatchling brings

ACTION = ROOT / ".github" / "actions" / "hubextrap"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINE = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*) --hash=sha256:([0-9a-f]{64})")


def pinned(name: str) -> dict[str, str]:
    """Version by name in one of the files."""
    found = {}
    for line in (ACTION / name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = match[2]
    return found


def test_they_are_the_versions_of_the_tests() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if not line.startswith("#"))
    }
    for file in ("base.txt", "build.txt", "eval.txt"):
        for name, version in pinned(file).items():
            assert constraints.get(name, version) == version, f"{file}: {name}; run: make hashes"
    assert set(pinned("base.txt")) & set(constraints)


def test_they_are_all_that_is_required() -> None:
    project, base, build = PROJECT["project"], pinned("base.txt"), pinned("build.txt")
    whole = base | build | pinned("eval.txt")
    for texts, there in (
        (project["dependencies"], base),
        (project["optional-dependencies"]["eval"], whole),
        (PROJECT["build-system"]["requires"], build),
    ):
        for requirement in map(Requirement, texts):
            version = there.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name}; run: make hashes"
            assert requirement.specifier.contains(version), f"{requirement}; run: make hashes"
    assert not set(pinned("eval.txt")) & (set(base) | set(build))


def test_a_build_of_this_machine_is_not_pinned() -> None:
    line_of = _script()["line_of"]
    archive = {"hashes": {"sha256": "0" * 64}}
    item = {
        "metadata": {"name": "A_b", "version": "1.0"},
        "download_info": {"url": "https://files.example/a", "archive_info": archive},
    }
    assert line_of(item) == ("a-b", f"a-b==1.0 --hash=sha256:{'0' * 64}")
    for version, url in (("1.0+cpu", "https://files.example/a"), ("1.0", "file:///wheels/a")):
        with pytest.raises(ValueError, match="not from an index"):
            line_of(
                {
                    "metadata": {"name": "a", "version": version},
                    "download_info": {"url": url, "archive_info": archive},
                }
            )


def _script() -> dict[str, object]:
    from runpy import run_path

    return run_path(str(ROOT / ".ci" / "hashes.py"))


def wheel(folder: Path, name: str, text: str) -> Path:
    """A wheel of one module."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()).rstrip(b'=').decode()},"
        for file, body in files.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for file, body in files.items():
            archive.writestr(file, body)
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_install_step(tmp_path: Path) -> None:
    """The real script, in an environment of its own, with small packages in place of the real ones."""
    steps = yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("name") == "Install hubextrap")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    action, checkout, temp = (
        tmp_path / "source" / ".github" / "actions" / "hubextrap",
        tmp_path / "work",
        tmp_path / "t",
    )
    for folder in (action, checkout, temp):
        folder.mkdir(parents=True)
    needed = wheel(tmp_path / "index", "needed", "")
    own = wheel(tmp_path / "own", "hubextrap", "")
    (checkout / "pip.py").write_text("raise SystemExit('the checkout has been imported')")
    (checkout / "zipfile.py").write_text("raise SystemExit('the checkout has been imported')")

    def install(hash_of_needed: str, hash_of_own: str) -> tuple[int, str, list[str]]:
        subprocess.run([python, "-m", "pip", "uninstall", "-qy", "needed", "hubextrap"], check=True, cwd=temp)
        (action / "base.txt").write_text(f"needed==1.0 --hash=sha256:{hash_of_needed}\n")
        environment = os.environ | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(checkout),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "index"),
            "PIP_CONFIG_FILE": os.devnull,
            "ACTION": str(action),
            "RUNNER_TEMP": str(temp),
            "COMMAND": "merge",
            "WHEEL": str(tmp_path / "own"),
            "WHEEL_SHA256": hash_of_own,
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        site = next((tmp_path / "venv" / "lib").glob("*/site-packages"))
        there = [name for name in ("needed", "hubextrap") if (site / f"{name}.py").exists()]
        return done.returncode, done.stdout + done.stderr, there

    code, said, there = install(digest(needed), digest(own))
    assert (code, there) == (0, ["needed", "hubextrap"]), said
    code, said, there = install("0" * 64, digest(own))
    assert code
    assert not there
    assert "DO NOT MATCH THE HASHES" in said
    for wrong in ("0" * 64, ""):
        code, said, there = install(digest(needed), wrong)
        assert code
        assert there == ["needed"], said
    wheel(tmp_path / "own", "another", "")
    code, said, there = install(digest(needed), digest(own))
    assert code
    assert there == ["needed"], said
