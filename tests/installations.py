"""What an installation with some extras has, worked out from this one, and a Python that lacks the rest."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from harness import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which hatchling brings

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LACKING = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {modules!r} else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        found = super().find_distributions(*context)
        return (one for one in found if one.name.lower().replace("_", "-") not in {distributions!r})

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
runpy.run_path({loopback!r})
"""


@cache
def here() -> dict[str, set[str]]:
    """The top-level modules of this installation, and the distributions that bring them."""
    found = packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def brought_by(*extras: str) -> set[str]:
    """The distributions that pip would install: what hubextrap and these extras need, and what that needs."""
    own: dict[str, list[str]] = PROJECT["optional-dependencies"]
    found: set[tuple[str, str]] = set()
    todo = [
        Requirement(text)
        for text in [*PROJECT["dependencies"], *(one for name in extras for one in own[name])]
    ]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            if name == "hubextrap":
                todo += map(Requirement, own.get(extra, ()))
                continue
            try:
                needed = [Requirement(text) for text in requires(name) or ()]
            except PackageNotFoundError:  # for another system, or of an extra that is not installed here
                continue
            todo += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def modules_of(distributions: set[str]) -> set[str]:
    """The top-level modules that they bring."""
    return {module for module, names in here().items() if names & distributions}


def beyond(*extras: str) -> set[str]:
    """The top-level modules here that an installation with these extras does not have."""
    return here().keys() - modules_of(brought_by(*extras) | {"hubextrap"})


def without(modules: set[str], folder: Path) -> str:
    """PYTHONPATH of a machine that lacks these modules: Python looks for them and finds none.

    Args:
        folder: for the file that sees to it.
    """
    place = folder / "lacking"
    place.mkdir(exist_ok=True)
    loopback = ROOT / "tests" / "loopback" / "sitecustomize.py"
    distributions = {name for module in modules for name in here().get(module, ())}
    text = LACKING.format(modules=modules, distributions=distributions, loopback=str(loopback))
    (place / "sitecustomize.py").write_text(text, encoding="utf-8")
    return os.pathsep.join([str(place), str(ROOT)])
