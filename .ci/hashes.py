"""Write the packages that the GitHub action installs, each with its version and the sha256 of its file.

base.txt is what the dependencies in pyproject.toml bring, eval.txt what the extras that evaluate add to them,
report.txt what the extra of that name does.
The versions are those of constraints.txt; what it does not hold (CUDA's packages, which torch brings) is what
pip chooses that day. `make hashes` runs it, after a change of constraints.txt or of the requirements.

With --check it writes nothing, and fails if a pinned file is no longer what an index has. Where no index is
reached, or the files of that index are for another Python, it says so and passes.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "hubextrap"
BUILD = ["hatchling", "setuptools"]
"""What builds hubextrap, and the packages that are published as sources only."""

FITS = (sys.version_info[:2], platform.system(), platform.machine()) == ((3, 11), "Linux", "x86_64")
FILES = ("base.txt", "build.txt", "eval.txt", "report.txt")
EXTRAS = ("eval", "math")
"""What evaluates: hubextrap's own tasks too."""
OURS = re.compile(r"hubextrap\[([\w,-]+)\]")
"""What names other extras of ours: an index is asked for what they stand for, not for hubextrap."""


def required(project: dict[str, Any], *extras: str) -> list[str]:
    """What pyproject.toml requires of others, with these extras."""
    found = list(project["dependencies"])
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            ours = OURS.fullmatch(requirement)
            found += required(project, *ours[1].split(",")) if ours else [requirement]
    return list(dict.fromkeys(found))


def resolved(requirements: list[str], *options: str) -> dict[str, str]:
    """Requirement line by name of each package that pip would install for ``requirements``."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report=-",
    ]
    done = subprocess.run([*command, *options, *requirements], check=True, stdout=subprocess.PIPE, text=True)
    return dict(line_of(item) for item in json.loads(done.stdout)["install"])


def line_of(item: dict[str, Any]) -> tuple[str, str]:
    """Name and requirement line of one package of pip's report.

    Raises:
        ValueError: it is a build of this machine's, which no runner would find.
    """
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    version, url = item["metadata"]["version"], item["download_info"]["url"]
    if "+" in version or not url.startswith("https://"):
        raise ValueError(
            f"{name} {version} comes from {url.split(':')[0]}, not from an index of published files"
        )
    return (
        name,
        f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}",
    )


def write(name: str, what: str, lines: list[str]) -> None:
    head = [f"# {what}", "# For Linux x86_64 and Python 3.11; written by `make hashes`."]
    (ACTION / name).write_text("\n".join([*head, *sorted(lines), ""]), encoding="utf-8")


def pinned(name: str) -> list[str]:
    """The requirement lines of one of the files."""
    lines = (ACTION / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def check() -> None:
    """End with an error if an index has another file for a pinned version."""
    if not FITS:
        print("skipped: the pinned files are for Python 3.11 on Linux x86_64, so pip would find others here")
        return
    lines = [line for name in FILES for line in pinned(name)]
    versions = sorted({line.split()[0] for line in lines})
    try:
        resolved([version for version in versions if version.startswith("packaging==")], "--no-deps")
    except subprocess.CalledProcessError:
        print("skipped: no index is reached, so the hashes were compared with nothing")
        return
    found = set(resolved(versions, "--no-deps").values())
    other = sorted(set(lines) - found)
    if other:
        sys.exit("an index has other files than are pinned here:\n" + "\n".join(other))
    print(f"{len(versions)} packages: an index has the files that are pinned")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
        sys.exit()
    if not FITS:
        sys.exit("the pinned files are for Python 3.11 on Linux x86_64: run this there")
    constraints = f"--constraint={ROOT / 'constraints.txt'}"
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    build = resolved(BUILD, constraints)
    base = resolved(required(project), constraints)
    whole = resolved(required(project, *EXTRAS), constraints)
    write("build.txt", "What builds packages from their sources.", list(build.values()))
    write("base.txt", "What hubextrap needs.", list(base.values()))
    added = [whole[name] for name in whole if name not in base and name not in build]
    write("eval.txt", f"What hubextrap[{','.join(EXTRAS)}] needs beside base.txt and build.txt.", added)
    report = resolved(required(project, "report"), constraints)
    added = [report[name] for name in report if name not in base]
    write("report.txt", "What hubextrap[report] needs beside base.txt.", added)
