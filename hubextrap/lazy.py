"""Names that are imported when they are first used: what they offer costs nothing before that."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def names_of(package: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``: what its ``__init__`` imports under ``if TYPE_CHECKING:``, one by one.

    So each name stands where type checkers look for it, in an import and in ``__all__``, and nowhere else.
    """
    homes: dict[str, str] = {}

    def find(name: str) -> Any:
        if not homes and not name.startswith("__"):
            homes.update(_homes(package))
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find


def by_name(function: str) -> Callable[..., Any]:
    """``module:function``, for those who stand below it and have it called all the same."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _homes(package: str) -> dict[str, str]:
    """The module of each name, read off the package's own source."""
    import ast
    from importlib.util import find_spec

    spec = find_spec(package)
    source = spec.loader.get_source(package)  # type: ignore[union-attr]
    return {
        alias.name: str(node.module)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hubextrap.")
        for alias in node.names
    }
