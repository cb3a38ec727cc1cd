"""A loopback Hub for tests, the demo and machines without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubextrap.localhub.faults import Fault, Request
    from hubextrap.localhub.hub import LocalHub

__all__ = ["Fault", "LocalHub", "Request"]

_MODULES = {"Fault": "faults", "LocalHub": "hub", "Request": "faults"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
