"""Many small requests at once, a bounded number of them in flight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hubextrap.progress import Stage

In = TypeVar("In")
Out = TypeVar("Out")

REQUESTS_IN_FLIGHT = 8


def map_concurrently(call: Callable[[In], Out], items: Sequence[In], stage: Stage) -> list[Out]:
    """``call`` of every item, in the items' order; the first error ends the work and is raised."""
    results = []
    with ThreadPoolExecutor(max_workers=REQUESTS_IN_FLIGHT) as pool:
        for result in pool.map(call, items):  # an error cancels what has not begun
            results.append(result)
            stage.advance(1)
    return results
