"""What REF|RECIPE|SCAN names: told in one way by every command that takes a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.cli.options import Selection, names, refuse_idle

if TYPE_CHECKING:
    import typer

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.trajectory import Trajectory


def named_scan(ctx: typer.Context, reference: str) -> Scan | None:
    """The scan, where it is the file of one.

    Raises:
        typer.BadParameter: an option says which steps to take.
    """
    from hubextrap.scans import Scan

    path = Path(reference)
    if path.suffix != ".safetensors" or path.is_dir():
        return None
    refuse_idle(ctx, names(Selection), f"is for a REF; the scan {reference} holds the steps that it holds")
    return Scan.load(path)


def named_run(
    ctx: typer.Context, reference: str, selection: Selection, progress: Progress
) -> Recipe | Trajectory:
    """The recipe, where it is the file of one (.yaml); else the checkpoints of a REF.

    Raises:
        typer.BadParameter: an option says which steps to take, and so does a recipe.
        HubExtrapError: the recipe is none; see `find_trajectory`.
    """
    from hubextrap.recipe import load_recipe
    from hubextrap.trajectory import find_trajectory

    path = Path(reference)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return find_trajectory(reference, selection.options(), progress=progress)
    refuse_idle(ctx, names(Selection), f"is for a REF; the recipe {reference} says which steps to take")
    return load_recipe(path)
