"""Files that say of their own content what its sha256 is: a flipped bit is told from another true statement.

It is no signature: whoever can write a file can state its sha256 too. What it claims is checked all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hubextrap.digests import sha256_hex

DIGEST = "digest"
"""The key under which a JSON object states the sha256 of all its other keys."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` (JSON values) and, as its last key, its sha256."""
    return {**content, DIGEST: digest_of(content)}


def unsealed(content: Any) -> Any:
    """What `sealed` was given; anything that states no sha256 comes back as it is.

    Raises:
        ValueError: it states another sha256 than it has.
    """
    if not isinstance(content, dict) or DIGEST not in content:
        return content
    rest = {key: value for key, value in content.items() if key != DIGEST}
    if content[DIGEST] != digest_of(rest):
        raise ValueError("its content does not have the sha256 that it states")
    return rest


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, whatever the order of its keys and however it is spaced."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return sha256_hex(text)
