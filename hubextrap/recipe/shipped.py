"""The recipes that come with hubextrap: in a checkout at merge_configs/, in a wheel inside the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hubextrap.errors import OutputError, RecipeError
from hubextrap.methods import nearest

_BUNDLED = re.compile(r"(?<![\w./-])demo/[\w./-]*\w")


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe file that comes with hubextrap."""

    name: str
    path: Path
    summary: str
    """Its first comment line."""


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """All of them, by name.

    Raises:
        RecipeError: the installation lacks them.
    """
    folder = _folder()
    return tuple(
        ShippedRecipe(path.stem, path, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
        for path in sorted(folder.glob("*.yaml"))
    )


def copy_shipped(name: str, destination: Path | None = None) -> Path:
    """Copy a shipped recipe to a new file, or into a folder; the current one when None. Returns the new file.

    Raises:
        RecipeError: there is no recipe of that name.
        OutputError: the file is there already, or cannot be written.
    """
    recipes = {recipe.name: recipe for recipe in shipped_recipes()}
    recipe = recipes.get(name.removesuffix(".yaml"))
    if recipe is None:
        raise RecipeError(
            f"no recipe {name} comes with hubextrap{nearest(name, list(recipes))}; see `hubextrap recipes ls`"
        )
    target = destination or Path()
    if target.is_dir():
        target /= recipe.path.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.path.read_text(encoding="utf-8"))
    except OSError as error:
        said = f"cannot be written: {error.strerror}"
        if isinstance(error, FileExistsError):
            said = "is there already; remove it, or give another name"
        raise OutputError(f"{target} {said}", file=target) from error
    return target


def bundled_names(recipe: Path) -> dict[str, int]:
    """What a shipped recipe names of hubextrap's sources, with the line; none in the root of these."""
    if Path("demo/data").is_dir():
        return {}
    found: dict[str, int] = {}
    for number, line in enumerate(recipe.read_text(encoding="utf-8").splitlines(), 1):
        for name in _BUNDLED.findall(line.partition("#")[0]):
            found.setdefault(name, number)
    return found


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "merge_configs", package.parent / "merge_configs"):
        if folder.is_dir():
            return folder
    raise RecipeError("the recipes that come with hubextrap are not installed; reinstall it")
