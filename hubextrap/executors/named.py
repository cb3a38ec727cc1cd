"""Executors by name: each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import RecipeError

if TYPE_CHECKING:
    from hubextrap.executors.interface import Executor

EXECUTORS = ("local", "ray")
"""Those that a command waits for; Slurm and HF Jobs work while nobody waits: `hubextrap submit`."""


def check_executor(name: str) -> str:
    """Refuse a name that is no executor's.

    Raises:
        RecipeError: names those that there are.
    """
    if name not in EXECUTORS:
        instead = "; for Slurm and HF Jobs: hubextrap submit RECIPE" if name in ("slurm", "jobs") else ""
        raise RecipeError(f"executor: {name!r} is not one of {', '.join(EXECUTORS)}{instead}")
    return name


def executor_named(name: str) -> Executor:
    """A new executor.

    Raises:
        RecipeError: there is none of that name.
        MissingExtra: what it is made of is not installed.
    """
    if check_executor(name) == "ray":
        from hubextrap.executors.on_ray import RayExecutor

        return RayExecutor()
    from hubextrap.executors.local import LocalExecutor

    return LocalExecutor()
