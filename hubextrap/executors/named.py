"""Executors by name: each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.errors import EvaluationError
from hubextrap.given import EXECUTORS, check_executor
from hubextrap.lazy import by_name

if TYPE_CHECKING:
    from hubextrap.executors.interface import Executor


def device_of(name: str, device: str) -> str:
    """The device on which an executor's models are measured.

    Raises:
        EvaluationError: one is named by its number.
        HubExtrapError: as `executor_named`; the executor cannot be asked.
    """
    if device == "auto":
        executor = executor_named(name)
        return "cuda" if getattr(executor, "gpus", lambda: 0)() else "cpu"
    if device not in ("cpu", "cuda"):
        raise EvaluationError(
            f"device {device!r}: {name} gives each model a GPU of its own; write cpu, cuda or auto"
        )
    return device


def executor_named(name: str) -> Executor:
    """A new executor.

    Raises:
        RecipeError: there is none of that name.
        MissingExtra: what it is made of is not installed.
    """
    found: Executor = by_name(EXECUTORS[check_executor(name)])()
    return found
