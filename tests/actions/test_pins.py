"""What the action installs: each package by the sha256 of its file, from files that name no index."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from runpy import run_path
from typing import Any

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
FILES = ("base.txt", "build.txt", "eval.txt", "report.txt")
SCRIPT: dict[str, Any] = run_path(str(ROOT / ".ci" / "hashes.py"))
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
    for file in FILES:
        for name, version in pinned(file).items():
            assert constraints.get(name, version) == version, f"{file}: {name}; run: make hashes"
    assert set(pinned("base.txt")) & set(constraints)


def test_they_are_all_that_is_required() -> None:
    project, base, build = PROJECT["project"], pinned("base.txt"), pinned("build.txt")
    whole = base | build | pinned("eval.txt")
    required = SCRIPT["required"]
    for texts, there in (
        (required(project), base),
        (required(project, *SCRIPT["EXTRAS"]), whole),
        (required(project, "report"), base | pinned("report.txt")),
        (PROJECT["build-system"]["requires"], build),
    ):
        for requirement in map(Requirement, texts):
            version = there.get(canonicalize_name(requirement.name))
            assert version, f"{requirement.name}; run: make hashes"
            assert requirement.specifier.contains(version), f"{requirement}; run: make hashes"
    assert not set(pinned("eval.txt")) & (set(base) | set(build))
    assert not set(pinned("report.txt")) & set(base)


def test_an_extra_of_ours_stands_for_what_it_requires() -> None:
    extras = {"x": ["hubextrap[y,z]", "b>=2"], "y": ["c[d]>=3"], "z": ["hubextrap[y]", "e>=4"]}
    project = {"dependencies": ["a>=1"], "optional-dependencies": extras}
    assert SCRIPT["required"](project) == ["a>=1"]
    assert SCRIPT["required"](project, "x") == ["a>=1", "c[d]>=3", "e>=4", "b>=2"]


def brought(requirements: list[str]) -> Iterator[str]:
    """The names of all that these bring for the Python and the system of the pins, as installed packages say.

    Skips the test where a package is installed in another version than the pinned one.
    """
    there = {name: one for file in FILES for name, one in pinned(file).items()}
    system = {"python_version": "3.11", "python_full_version": "3.11.9", "implementation_name": "cpython"}
    system |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    system |= {"os_name": "posix", "platform_python_implementation": "CPython"}
    waiting, seen = [Requirement(text) for text in requirements], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            if metadata.version(name).partition("+")[0] != there.get(name, ""):
                pytest.skip(f"{name} is installed as {metadata.version(name)}, pinned as {there.get(name)}")
            for further in map(Requirement, metadata.requires(name) or []):
                if further.marker is None or further.marker.evaluate({**system, "extra": extra}):
                    waiting.append(further)


def test_the_base_is_what_the_dependencies_bring_and_no_more() -> None:
    base = set(pinned("base.txt"))
    assert base == set(brought(SCRIPT["required"](PROJECT["project"]))), "run: make hashes"
    assert not {name for name in base if re.match("torch|triton|transformers|tokenizers|nvidia|cuda", name)}


def test_what_evaluates_is_what_its_extras_bring_and_no_more() -> None:
    """Where torch is another build than the published one, it does not say what CUDA is made of."""
    whole = set(pinned("base.txt")) | set(pinned("eval.txt"))
    found = set(brought(SCRIPT["required"](PROJECT["project"], *SCRIPT["EXTRAS"])))
    assert found - set(pinned("build.txt")) <= whole, "run: make hashes"
    others = {name for name in whole - found if not re.match("nvidia-|cuda-|triton", name)}
    assert not others, "run: make hashes"
    assert {"torch", "lm-eval", "math-verify"} <= found


def test_what_draws_is_what_its_extra_brings_and_no_more() -> None:
    found = set(brought(SCRIPT["required"](PROJECT["project"], "report")))
    assert found == set(pinned("base.txt")) | set(pinned("report.txt")), "run: make hashes"


def test_a_build_of_this_machine_is_not_pinned() -> None:
    line_of = SCRIPT["line_of"]
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
def test_the_install_steps(tmp_path: Path) -> None:
    """The real scripts, in an environment of its own, with small packages in place of the real ones."""
    steps = yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]
    scripts = {step["name"]: step["run"] for step in steps if step.get("name", "").startswith("Install ")}
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

    def install(
        hash_of_needed: str, hash_of_own: str, file: str = "base.txt", step: str = "Install hubextrap"
    ) -> tuple[int, str, list[str]]:
        subprocess.run([python, "-m", "pip", "uninstall", "-qy", "needed", "hubextrap"], check=True, cwd=temp)
        for name in FILES:
            (action / name).write_text("")
        (action / file).write_text(f"needed==1.0 --hash=sha256:{hash_of_needed}\n")
        environment = os.environ | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(checkout),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "index"),
            "PIP_CONFIG_FILE": os.devnull,
            "HOME": str(tmp_path),
            "ACTION": str(action),
            "RUNNER_TEMP": str(temp),
            "WHEEL": str(tmp_path / "own"),
            "WHEEL_SHA256": hash_of_own,
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts[step]],
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
    evaluates, draws = "Install what evaluates", "Install what draws"
    for file, step in (("build.txt", evaluates), ("eval.txt", evaluates), ("report.txt", draws)):
        code, said, there = install(digest(needed), "", file, step)
        assert (code, there) == (0, ["needed"]), said
        code, said, there = install("0" * 64, "", file, step)
        assert code
        assert not there
        assert "DO NOT MATCH THE HASHES" in said
