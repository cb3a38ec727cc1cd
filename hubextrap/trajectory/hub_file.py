"""What a listing of the Hub says of one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repo or bucket, or a folder."""

    path: str
    size: int
    date: datetime | None = None
    """Of the commit that last changed it, where asked for."""
    digest: str | None = None
    """sha256 of an LFS file, git blob id of a regular one; of a file in a bucket its Xet hash."""
    is_folder: bool = False
