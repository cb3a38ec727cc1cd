"""The hashes that content is known by: sha256, and of a small file on the Hub its git blob id. All as hex."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash


def sha256_hex(content: bytes | str) -> str:
    """sha256 of bytes, or of text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_json(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """sha256 of JSON values, whatever the order of their keys; ``default`` as `json.dumps` takes it."""
    return sha256_hex(json.dumps(value, sort_keys=True, default=default))


def is_sha256(digest: str) -> bool:
    """Whether what the Hub lists for a file is a sha256; else it is a git blob id."""
    return len(digest) == 64


def hasher_like(digest: str, size: int) -> _Hash:
    """What makes a hash of the kind of ``digest`` of a file of ``size`` bytes."""
    if is_sha256(digest):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def hash_like(digest: str, data: bytes) -> str:
    """The hash of a file's ``data``, of the kind of ``digest``."""
    found = hasher_like(digest, len(data))
    found.update(data)
    return found.hexdigest()
