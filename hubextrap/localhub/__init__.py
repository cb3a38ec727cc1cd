"""A loopback Hub for tests, the demo and machines without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.extras import require
from hubextrap.lazy import names_of

if TYPE_CHECKING:
    from hubextrap.localhub.faults import Fault, Request
    from hubextrap.localhub.hub import LocalHub

__all__ = ["Fault", "LocalHub", "Request"]

_find = names_of(__name__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        require("localhub", "the local hub")
    return _find(name)
