"""What callers may give, made into what is worked on: the file of a recipe, the name of a run, a path.

What is none of these is refused by its argument's name, before anything is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from hubextrap.errors import RecipeError, WrongArgument, wrong_argument
from hubextrap.recipe import (
    Recipe,
    RegroundRecipe,
    WatchRecipe,
    load_recipe,
    load_reground_recipe,
    load_watch_recipe,
)
from hubextrap.sample_sizes import sample_problem

if TYPE_CHECKING:
    from hubextrap.progress import Progress
    from hubextrap.sample_sizes import SampleChoice
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


def watch_recipe_of(given: WatchRecipe | Path | str, options: TrajectoryOptions | None = None) -> WatchRecipe:
    """What `hubextrap watch` is to do: a recipe, the one in a file (.yaml), or a page of a run by its name.

    Args:
        options: which checkpoints of a reference.

    Raises:
        WrongArgument: it is none of them. RecipeError: as `load_recipe`; or options without effect.
    """
    named = isinstance(given, (str, os.PathLike)) and not names_recipe(str(given))
    if options is not None and not named:
        raise RecipeError("options: have no effect but on a reference, whose checkpoints they choose")
    if isinstance(given, WatchRecipe):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise wrong_argument(
            "run",
            "a WatchRecipe, the path of a recipe file, or the reference of a run (org/name, a folder)",
            given,
        )
    if not named:
        return load_watch_recipe(Path(given))
    from hubextrap.trajectory import TrajectoryOptions
    from hubextrap.trajectory.reference import reference_text

    return WatchRecipe.of_run(reference_text(given, "run"), **asdict(options or TrajectoryOptions()))


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


def sample_choice(given: object, reading: object = None) -> SampleChoice:
    """How many of the weights to read.

    Args:
        reading: the options that say who reads them, if any do.

    Raises:
        WrongArgument: it is no number and none of the words.
        RecipeError: there can be no such sample, or nobody else is needed to read it.
    """
    if isinstance(given, str) and given in ("auto", "exact"):
        return cast("SampleChoice", given)
    if isinstance(given, float):
        raise RecipeError(
            f"sample: {given:g} is no number of weights per tensor; a share of all weights is "
            "reference_share (--reference-share)"
        )
    if not isinstance(given, Integral) or isinstance(given, bool):
        raise wrong_argument("sample", 'a number of weights per tensor, "auto" or "exact"', given)
    size = int(given)
    if problem := sample_problem(size):
        raise RecipeError(f"--sample: {problem}")
    if (executor := getattr(reading, "executor", "local")) != "local":
        raise RecipeError(
            f"--executor {executor}: a sample needs no cluster, as this process reads it in a minute; leave "
            "one of --sample and --executor out"
        )
    return size


def check_reads(sample: SampleChoice) -> None:
    """Refuse to be told how many weights to read, where a scan says what was read.

    Raises:
        RecipeError: says so.
    """
    if sample != "auto":
        asked = "--exact" if sample == "exact" else f"--sample {sample}"
        raise RecipeError(
            f"{asked} (sample) has no effect on a scan, which holds what was read; leave it out"
        )


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
