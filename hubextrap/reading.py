"""How the weights of a run are read."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS
from hubextrap.errors import RecipeError
from hubextrap.given import check_executor


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How weights are read; nothing here changes what is found in them."""

    memory: int = DEFAULT_MEMORY
    """Bytes of memory that the process may take, python included."""
    workers: int = DEFAULT_WORKERS
    """Threads that read, compute and write."""
    cache: bool = False
    """Download Hub checkpoints into the Hub cache first, instead of reading ranges of them."""
    executor: str = "local"
    """Who reads them: ``local`` for this process, ``ray`` for a Ray cluster."""

    def __post_init__(self) -> None:
        check_executor(self.executor, None if self.workers == DEFAULT_WORKERS else self.workers)
        for name in ("memory", "workers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise RecipeError(f"{name}: has to be a whole number of at least 1, not {value!r}")
