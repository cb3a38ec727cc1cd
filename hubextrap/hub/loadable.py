"""What a loader could take from a folder that a prediction lies in, and where that would lead elsewhere.

Of a file that nobody names, only what is known to be a document, a picture, data or a log is let be: weights
and code come under more names than anyone can list.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from hubextrap.foreign_data import parse_json
from hubextrap.hub.left_behind import is_code
from hubextrap.hub.side_files import is_legal_file, is_side_file, is_weight_file
from hubextrap.tensors.configuration import leads_of
from hubextrap.tensors.weights import PICKLE_SUFFIXES

_DOCUMENTS = frozenset(
    (
        *(".md", ".rst", ".txt", ".pdf", ".html", ".bib", ".cff", ".log", ".csv", ".tsv", ".json", ".jsonl"),
        *(".yaml", ".yml", ".parquet", ".arrow", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4"),
    )
)
_BOOKKEEPING = frozenset((".gitattributes", ".gitignore", ".gitkeep", ".DS_Store"))
_DOWNLOADS = re.compile(r"\.cache/huggingface/(?:CACHEDIR\.TAG|\.gitignore|[^.].*\.(?:metadata|lock))")
_LOADED_JSON = re.compile(r"(?:.*\.index(?:\..*)?|.*config.*|adapter.*|model.*|modules)\.json", re.IGNORECASE)
_EVENTS = "events.out.tfevents"


def is_harmless(file: str) -> bool:
    """Whether no loader takes weights, code or settings from a file of this path in a model's folder."""
    path = PurePosixPath(file)
    if path.name in _BOOKKEEPING or _DOWNLOADS.fullmatch(file):
        return True
    if is_side_file(file) or is_weight_file(path.name) or is_code(file):
        return False
    if path.name.startswith(_EVENTS):
        return not path.name.endswith(PICKLE_SUFFIXES)
    if is_legal_file(path.name):
        return True
    suffix = path.suffix.lower()
    if suffix == ".json" and _LOADED_JSON.fullmatch(path.name):
        return path.name == "config.json" and bool(path.parent.name)
    return suffix in _DOCUMENTS


def leads_elsewhere(config: bytes) -> str | None:
    """What in a configuration sends a loader elsewhere for weights or code; None where nothing does."""
    try:
        content = parse_json(config, "config.json", error=ValueError, remedy="repair it")
    except ValueError as error:
        return f"cannot be read ({error})"
    return next(leads_of(content), None)
