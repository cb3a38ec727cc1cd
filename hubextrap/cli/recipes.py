"""`hubextrap recipes`: list, copy and check recipes."""

from __future__ import annotations

from pathlib import Path

import typer

from hubextrap.cli.examples import Explained
from hubextrap.cli.terminal import tell

app = typer.Typer(help="List, copy and check recipes.", no_args_is_help=True)


@app.command("ls", cls=Explained)
def list_recipes() -> None:
    """List the recipes that come with hubextrap."""
    from hubextrap.recipe import shipped_recipes

    recipes = shipped_recipes()
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        tell(f"{recipe.name:<{width}}  {recipe.summary}")


@app.command("cp", cls=Explained)
def copy_recipe(
    name: str = typer.Argument(metavar="NAME", help="A name from `hubextrap recipes ls`."),
    destination: Path = typer.Argument(
        Path(), metavar="DESTINATION", help="Name of the new file, or a folder for it."
    ),
) -> None:
    """Copy a recipe to a file of your own, and say what to fill in. Nothing is overwritten."""
    from hubextrap.recipe import bundled_names, copy_shipped

    copy = copy_shipped(name, destination)
    tell(copy)
    if bundled := bundled_names(copy):
        named = ", ".join(f"{name} (line {line})" for name, line in bundled.items())
        tell(
            f"{copy} still names parts of hubextrap's own demo, which are not here: {named}. Put your own "
            "repos and folders there. The demo itself runs by `make demo` in the source distribution.",
            err=True,
        )


@app.command("validate", cls=Explained)
def validate(files: list[Path] = typer.Argument(metavar="RECIPE...", help="Recipe files.")) -> None:
    """Check recipes offline. Every problem of every file is listed, with its line."""
    from hubextrap.recipe import validate_recipes

    for file in validate_recipes(files):
        tell(f"{file}: ok")
