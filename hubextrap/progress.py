"""What long work tells its caller: a protocol, and the silent implementation of it.

The CLI shows progress (hubextrap.cli.progress); the library only reports it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stage(Protocol):
    """One stage of work under way."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units (bytes, requests, checkpoints) as done. Thread-safe."""


class Progress(Protocol):
    """Where work reports what it does."""

    def stage(self, label: str, total: int | None, unit: str = "B") -> AbstractContextManager[Stage]:
        """Open a stage of ``total`` units; unit ``B`` is bytes, anything else is counted."""

    def say(self, line: str) -> None:
        """Tell the user one fact, as a line."""

    def warn(self, line: str) -> None:
        """Tell the user of a problem, also where no progress is wanted."""
        self.say(f"warning: {line}")


class SilentProgress:
    """Reports nothing, and is its own stage; the default of the Python API."""

    @contextmanager
    def stage(self, label: str, total: int | None, unit: str = "B") -> Iterator[Stage]:
        yield self

    def advance(self, amount: int) -> None:
        return None

    def say(self, line: str) -> None:
        return None

    def warn(self, line: str) -> None:
        return None


class StagesOnly:
    """Shows the stages of another progress, and says nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, label: str, total: int | None, unit: str = "B") -> AbstractContextManager[Stage]:
        return self._progress.stage(label, total, unit)

    def say(self, line: str) -> None:
        return None

    def warn(self, line: str) -> None:
        return None
