"""Print the lowest versions that pyproject.toml allows, as constraints for pip (`make test-lowest`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

OURS = "hubextrap["
"""Extras that name others of ours are not packages."""


def lowest(pyproject: str) -> list[str]:
    """``name==version`` for each requirement.

    Raises:
        ValueError: a requirement is not of the form ``name>=version``, so it has no lowest version.
    """
    project = tomllib.loads(pyproject)["project"]
    requirements = [
        *project["dependencies"],
        *(r for rs in project["optional-dependencies"].values() for r in rs),
    ]
    lines = set()
    for requirement in requirements:
        if requirement.startswith(OURS):
            continue
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(
                f"pyproject.toml: {requirement!r} is not name>=version, so it has no lowest version"
            )
        lines.add(f"{match[1]}=={match[2]}")
    return sorted(lines, key=str.lower)


if __name__ == "__main__":
    sys.stdout.write(
        "\n".join(lowest((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))) + "\n"
    )
