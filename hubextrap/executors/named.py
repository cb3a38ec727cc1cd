"""Executors by name: each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.given import check_executor

if TYPE_CHECKING:
    from hubextrap.executors.interface import Executor


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
