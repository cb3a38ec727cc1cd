"""How long to wait before asking a server again, and when to stop asking."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of trying one thing again."""

    attempts: int = 8
    seconds: float = 900.0
    """From the first attempt to the start of the last; the Hub's rate limits reset within 300 s."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled for each one after it."""
    longest_wait: float = 10.0
    """Seconds a wait grows to; a server may ask for more."""


class Attempts:
    """Counts the attempts at one thing. Not thread-safe."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._start = time.monotonic()
        self.failed = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the first attempt."""
        return time.monotonic() - self._start

    def wait(self, asked: float | None = None) -> float | None:
        """Seconds to wait after one more failure, None when it was the last.

        Args:
            asked: seconds that the server asked for, see ``asked_wait``.
        """
        self.failed += 1
        wait = min(self._patience.longest_wait, self._patience.first_wait * 2.0 ** (self.failed - 1))
        wait *= random.uniform(0.5, 1.0)  # so that many readers do not come back at the same moment
        if asked is not None:
            wait += asked
        if self.failed >= self._patience.attempts or self.elapsed + wait > self._patience.seconds:
            return None
        return wait


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds a response asks for: RateLimit if used up, Retry-After (seconds or date), RateLimit-Reset."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(min(limit.reset_in_seconds, 10**9))
    lower = {key.lower(): value.strip() for key, value in headers.items()}
    for header in ("retry-after", "ratelimit-reset"):
        value = lower.get(header, "")
        if value.isascii() and value.isdigit():
            return float(value)
        if value:
            try:
                moment = parsedate_to_datetime(value)
            except ValueError:
                continue
            if moment.tzinfo is None:  # "-0000": UTC without a known zone
                moment = moment.replace(tzinfo=timezone.utc)
            return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    return None
