"""hatchling's hook for the readme in the metadata: README.md without links that an index cannot follow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_CODE_OR_LINK = re.compile(r"```.*?```|!?\[(?P<text>[^\]]*)\]\((?P<target>[^)]*)\)", re.DOTALL)


class ReadmeHook(MetadataHookInterface):
    """Sets ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}


def without_relative_links(text: str) -> str:
    """A link to a file of the source tree becomes its text and the file's path: an index has no such file."""
    return _CODE_OR_LINK.sub(_plain, text)


def _plain(found: re.Match[str]) -> str:
    text, target = found["text"], found["target"]
    if text is None or target.startswith(("https://", "http://")):
        return found[0]
    return f"`{target}`" if text.strip("`") == target else f"{text} (`{target}`)"
