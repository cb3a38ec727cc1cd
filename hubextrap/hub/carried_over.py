"""What a prediction's card takes over from that of the last checkpoint, in a form that the Hub accepts."""

from __future__ import annotations

import re
from typing import Any

from hubextrap.errors import CorruptFile
from hubextrap.foreign_data import parse_yaml
from hubextrap.foreign_text import terminal_line
from hubextrap.hub.side_files import is_utf8
from hubextrap.licenses import LICENSES
from hubextrap.redaction import redact

METADATA = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_NAME = re.compile(r"[\w-]+", re.ASCII)
_LINK = re.compile(r"https?://[!-~]{1,2000}|(?!.*\.\.)\w[\w.-]*(?:/[\w.-]+)*", re.ASCII)
"""A page, or a file beside the card: not ``javascript:``, not what leads out of the repo."""
_LONGEST = 1000
_DATASET = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)


def carried_over(card: str | None) -> dict[str, Any]:
    """Of another card's metadata, what holds for the prediction too; nothing when it cannot be read.

    The card may be somebody else's, or never have been on the Hub: what the Hub would refuse must not make
    the push of finished weights fail, so it is put right or left out.
    """
    metadata = _metadata(card)[0]
    taken = _license(metadata)
    for field in ("language", "datasets"):
        values = _texts(metadata.get(field))
        if field == "datasets":
            values = [value for value in values if _DATASET.fullmatch(value)]
        if values:
            taken[field] = values if isinstance(metadata[field], list) else values[0]
    if isinstance(tag := metadata.get("pipeline_tag"), str) and _NAME.fullmatch(tag):
        taken["pipeline_tag"] = tag
    return taken


def unreadable(card: str | None) -> str | None:
    """Why nothing can be taken over from a card's metadata; None where they can be read or are not there."""
    return _metadata(card)[1]


def _metadata(card: str | None) -> tuple[dict[str, Any], str | None]:
    """A card's metadata, and what is wrong with them."""
    match = METADATA.match((card or "").removeprefix("\ufeff"))
    if match is None:
        return {}, None
    try:
        metadata = parse_yaml(match[1], "README.md", remedy="correct it in the checkpoint's card", nan=True)
    except CorruptFile as error:
        return {}, str(error)
    if metadata is not None and not isinstance(metadata, dict):
        return {}, "they are not a mapping"
    return metadata or {}, None


def _license(metadata: dict[str, Any]) -> dict[str, Any]:
    """The licence; one that the Hub does not know stays as the name of an ``other``."""
    names = _texts(metadata.get("license"))
    known = [name.lower() for name in names if name.lower() in LICENSES]
    taken: dict[str, Any] = {}
    if names and len(known) == len(names):
        taken["license"] = known if isinstance(metadata["license"], list) else known[0]
    elif names:
        taken = {"license": "other", "license_name": " and ".join(names)}
    if isinstance(metadata.get("license_name"), str) and (texts := _texts(metadata["license_name"])):
        taken["license_name"] = texts[0]
    if isinstance(link := metadata.get("license_link"), str) and _LINK.fullmatch(link):
        taken["license_link"] = redact(link)
    return taken


def _texts(value: object) -> list[str]:
    """The texts in a field that holds one or a list of them, those that can be written and read: no lone
    surrogate, no byte that was not UTF-8, at most ``_LONGEST`` characters."""
    return [
        terminal_line(text.strip())
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and text.strip() and len(text) <= _LONGEST
        if "\ufffd" not in text and is_utf8(text)
    ]
