"""What REF|RECIPE|SCAN names: told in one way by every command that takes a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.cli.options import Selection, names, refuse_idle
from hubextrap.cli.sampling import Sampled

if TYPE_CHECKING:
    import typer

    from hubextrap.progress import Progress
    from hubextrap.recipe import Recipe
    from hubextrap.scans import Scan
    from hubextrap.trajectory import Trajectory


def named_scan(ctx: typer.Context, reference: str) -> Scan | None:
    """The scan, where it is the file of one.

    Raises:
        typer.BadParameter: an option says which steps to take, or how many weights.
    """
    from hubextrap.given import names_scan

    if not names_scan(reference):
        return None
    refuse_idle(ctx, names(Selection), f"is for a REF; the scan {reference} holds the steps that it holds")
    refuse_idle(ctx, names(Sampled), f"is for a REF or a RECIPE; the scan {reference} holds what was read")
    from hubextrap.scans import Scan

    return Scan.load(reference)


def named_run(
    ctx: typer.Context, reference: str, selection: Selection, progress: Progress
) -> Recipe | Trajectory:
    """The recipe, where it is the name of one (.yaml); else the checkpoints of a REF.

    A repo that is called so is ``hf://org/name.yaml``.

    Raises:
        typer.BadParameter: an option says which steps to take, and so does a recipe.
        HubExtrapError: the recipe is not there, or none; see `find_trajectory`.
    """
    from hubextrap.given import names_recipe

    if not names_recipe(reference):
        from hubextrap.trajectory import find_trajectory

        return find_trajectory(reference, selection.options(), progress=progress)
    refuse_idle(ctx, names(Selection), f"is for a REF; the recipe {reference} says which steps to take")
    from hubextrap.recipe import load_recipe

    return load_recipe(reference)


def file_name_of(reference: str, run: Recipe | Trajectory) -> str:
    """What a file about the run can be called: after the run that a recipe observes; after the recipe, where
    that lists its checkpoints."""
    from hubextrap.recipe import Recipe
    from hubextrap.trajectory import parse_reference

    if not isinstance(run, Recipe):
        return parse_reference(reference).file_name
    if run.trajectory.repo is None:
        return Path(reference).stem
    return parse_reference(run.trajectory.repo).file_name
