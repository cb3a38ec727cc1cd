"""What callers may give, made into what is worked on: the file of a recipe, the name of a run, a path.

What is none of these is refused by its argument's name, before anything is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from hubextrap.errors import RecipeError, WrongArgument, wrong_argument
from hubextrap.recipe import Recipe, RegroundRecipe, load_recipe, load_reground_recipe

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.trajectory import Trajectory, TrajectoryOptions

Kind = TypeVar("Kind")
RECIPE_SUFFIXES = (".yaml", ".yml")
_A_RECIPE = "a Recipe, or the path of a recipe file"


def recipe_of(given: Recipe | Path | str) -> Recipe:
    """The recipe, read where its file was named.

    Raises:
        WrongArgument: it is neither. RecipeError: as `load_recipe`.
    """
    if isinstance(given, Recipe):
        return given
    return load_recipe(path_of("recipe", given, _A_RECIPE))


def reground_recipe_of(given: RegroundRecipe | Path | str) -> RegroundRecipe:
    """The same for `hubextrap reground`."""
    if isinstance(given, RegroundRecipe):
        return given
    return load_reground_recipe(path_of("recipe", given, _A_RECIPE.replace("Recipe", "RegroundRecipe")))


def names_recipe(reference: str) -> bool:
    """Whether it is the file of a recipe; a repo that is called so is ``hf://org/name.yaml``."""
    path = Path(reference)
    return path.suffix in RECIPE_SUFFIXES and "://" not in reference and not path.is_dir()


def names_scan(reference: str) -> bool:
    """Whether it is the file of a scan."""
    path = Path(reference)
    if "://" in reference or path.suffix in RECIPE_SUFFIXES:
        return False
    is_file = os.path.isfile(path)  # noqa: PTH113 - of any text
    return is_file or (path.suffix == ".safetensors" and not path.is_dir())


def run_of(
    name: str,
    given: Trajectory | Recipe | Path | str,
    options: TrajectoryOptions | None = None,
    progress: Progress | None = None,
) -> Trajectory | Recipe:
    """A trajectory or a recipe: what was given, or what is in the file (.yaml) or the run that was named.

    Args:
        name: the argument's, for messages.
        options: which checkpoints of a reference.

    Raises:
        WrongArgument: it is none of them.
        RecipeError: options, which have no effect on what is no reference; or as `load_recipe`.
        TrajectoryError: as `find_trajectory`.
    """
    from hubextrap.trajectory import Trajectory, find_trajectory  # what is wrong in a recipe is said before

    if isinstance(given, (str, os.PathLike)) and not names_recipe(str(given)):
        return find_trajectory(
            Path(given) if isinstance(given, os.PathLike) else given, options, progress=progress
        )
    if options is not None:
        raise RecipeError("options: have no effect but on a reference, whose checkpoints they choose")
    if isinstance(given, (str, os.PathLike)):
        return load_recipe(Path(given))
    if isinstance(given, (Trajectory, Recipe)):
        return given
    wanted = (
        "a Trajectory, a Recipe, the path of a recipe file, or the reference of a run (org/name, a folder)"
    )
    raise wrong_argument(name, wanted, given)


def path_of(name: str, given: object, wanted: str = "a path") -> Path:
    """A path that was given as one or as text.

    Raises:
        WrongArgument: it is neither.
    """
    if isinstance(given, (str, os.PathLike)):
        return Path(given)
    raise wrong_argument(name, wanted, given)


def optional_path(name: str, given: object) -> Path | None:
    """The same, or None."""
    return None if given is None else path_of(name, given, "a path or None")


def paths_of(name: str, given: object) -> list[Path]:
    """One path, or several."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [path_of(name, one) for one in given]
    return [path_of(name, given, "a path, or a list of paths")]


def numbers_of(name: str, given: object) -> list[float]:
    """One number, or several.

    Raises:
        WrongArgument: they are none.
    """
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for one in several:
        if not isinstance(one, Real) or isinstance(one, bool):
            raise wrong_argument(name, "a number, or a list of numbers", one)
    return cast("list[float]", several)


def texts_of(name: str, given: object) -> list[str]:
    """One text, or several.

    Raises:
        WrongArgument: they are none.
    """
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for one in several:
        if not isinstance(one, str):
            raise wrong_argument(name, "a text, or a list of texts", one)
    return cast("list[str]", several)


def check_names(function: str, given: Mapping[str, object], known: type) -> None:
    """Refuse further arguments that a function does not have, as Python does where it lists them one by one.

    Args:
        known: the TypedDict that lists them.

    Raises:
        WrongArgument: names one, and those that there are.
    """
    names = tuple(known.__annotations__)
    for name in given:
        if name not in names:
            raise WrongArgument(
                f"{function}() got an unexpected keyword argument {name!r}; beside the first ones it takes "
                f"{', '.join(names)}"
            )


def one_of(name: str, kind: type[Kind], given: object) -> Kind | None:
    """What has to be of a class, or None.

    Raises:
        WrongArgument: it is neither.
    """
    if given is None or isinstance(given, kind):
        return given
    raise wrong_argument(name, f"of the class {kind.__name__}, or None", given)


EXECUTORS = {
    "local": "hubextrap.executors.local:LocalExecutor",
    "ray": "hubextrap.executors.on_ray:RayExecutor",
}
"""Those that a command waits for; each is imported when it is asked for. Slurm and HF Jobs work while nobody
waits: `hubextrap submit`."""


def check_by_this_process(executor: str) -> None:
    """Refuse to have adapters read elsewhere.

    Raises:
        RecipeError: says why.
    """
    if executor != "local":
        raise RecipeError(
            f"--executor {executor}: adapters are small, and a run of them is read and predicted by this "
            "process; leave it out"
        )


def check_executor(name: str, workers: object = None) -> str:
    """Refuse a name that is no executor's.

    Args:
        workers: threads that are asked for, where that is not the default.

    Raises:
        RecipeError: names those that there are; the executor takes no number of threads.
    """
    if not isinstance(name, str) or name not in EXECUTORS:
        instead = "; for Slurm and HF Jobs: hubextrap submit RECIPE" if name in ("slurm", "jobs") else ""
        raise RecipeError(f"executor: {name!r} is not one of {', '.join(EXECUTORS)}{instead}")
    if workers is not None and name != "local":
        raise RecipeError(
            f"workers: {workers} has no effect with the executor {name}, whose units take one thread each; "
            "leave it out"
        )
    return name
