"""Where the documentation is: its pages are no part of an installed package."""

from __future__ import annotations

DOCUMENTATION = "https://github.com/OWNER/hf-extrap/tree/main/docs"
"""The one that pyproject.toml has, which names the repository of a release."""


def page(name: str) -> str:
    """The address of a page, e.g. ``methods`` or ``guides/ci``."""
    return f"{DOCUMENTATION}/{name}.md"
