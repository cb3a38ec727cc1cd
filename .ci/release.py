"""Compare what a release says of itself: version, changelog, tag, addresses.

`make lint` runs it as it is. The release workflow runs it with --tag and --repository, where what is fine
between releases is a fault too: changes that are still unreleased, and addresses of no repository.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "Unreleased"


def problems(root: Path, tag: str | None = None, repository: str | None = None) -> list[str]:
    """What does not fit together in the sources; ``repository`` is OWNER/NAME on GitHub."""
    version = _found(r'^__version__ = "(.*)"$', root / "hubextrap" / "_version.py")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.*?)\](.*)$", changelog, re.MULTILINE)
    released = [(name, date) for name, date in headings if name != UNRELEASED]
    found = []
    if not VERSION.fullmatch(version):
        found.append(f"hubextrap/_version.py: {version!r} is not X.Y.Z")
    for name, date in released:
        if not VERSION.fullmatch(name) or not re.fullmatch(r" - \d{4}-\d\d-\d\d", date):
            found.append(f"CHANGELOG.md: '[{name}]{date}' is not '[X.Y.Z] - YYYY-MM-DD'")
    newest = released[0][0] if released else "none"
    if newest != version:
        found.append(f"hubextrap/_version.py says {version}, the newest heading of CHANGELOG.md {newest}")
    numbers = [tuple(map(int, name.split("."))) for name, _ in released if VERSION.fullmatch(name)]
    if numbers != sorted(set(numbers), reverse=True):
        found.append("CHANGELOG.md: its versions do not descend")
    if UNRELEASED in [name for name, _ in headings[1:]]:
        found.append(f"CHANGELOG.md: [{UNRELEASED}] is not its first heading")
    if tag is not None:
        if tag != f"v{version}":
            found.append(f"the tag is {tag}, the version {version}: v{version} would be its tag")
        if headings and headings[0][0] == UNRELEASED:
            found.append(f"CHANGELOG.md: changes stand under [{UNRELEASED}]; move them under the version")
    if repository is not None:
        urls = _found(r"^\[project\.urls\].*\n((?:\w+ = .*\n)+)", root / "pyproject.toml")
        for url in re.findall(r'"(.*?)"', urls):
            if not f"{url}/".startswith(f"https://github.com/{repository}/"):
                found.append(f"pyproject.toml: {url} is not of https://github.com/{repository}")
    return found


def _found(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{file}: nothing like {pattern}")
    return found[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag")
    parser.add_argument("--repository")
    arguments = parser.parse_args()
    if found := problems(Path(__file__).parents[1], arguments.tag, arguments.repository):
        sys.exit("\n".join(found))
