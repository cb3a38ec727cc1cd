"""A loopback Hub for tests, the demo and machines without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.errors import HubExtrapError

if TYPE_CHECKING:
    from hubextrap.localhub.faults import Fault, Request
    from hubextrap.localhub.hub import LocalHub

__all__ = ["Fault", "LocalHub", "Request"]

_MODULES = {"Fault": "faults", "LocalHub": "hub", "Request": "faults"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ImportError as error:
        raise HubExtrapError(
            f"the local hub needs {error.name}: pip install 'hubextrap[localhub]'"
        ) from error
