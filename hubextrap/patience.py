"""What is worth asking a server again, how long to wait before, and when to stop."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hubextrap.hub_access import network_errors
from hubextrap.hub_client import asked_wait

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


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


CALLS = Patience(attempts=5, first_wait=1.5, longest_wait=30.0)
"""For a call to the Hub's API."""


class Attempts:
    """Counts the attempts at one thing; the retry policy is ``CALLS`` when None. Not thread-safe."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or CALLS
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


def retried(
    call: Callable[[], _T],
    patience: Patience | None = None,
    worth: Callable[[BaseException], bool] | None = None,
) -> _T:
    """``call()``, again after a wait while the retry policy allows it and the failure may pass.

    Args:
        patience: ``CALLS`` when None.
        worth: which errors are worth another attempt; ``is_passing`` when None.
    """
    attempts = Attempts(patience)
    while True:
        try:
            return call()
        except Exception as error:
            wait = attempts.wait(wait_asked_by(error)) if (worth or is_passing)(error) else None
            if wait is None:
                raise
        time.sleep(wait)


def wait_asked_by(error: BaseException) -> float | None:
    """Seconds that the response asks for which the Hub's client raised as ``error``."""
    response = getattr(cause_of(error), "response", None)
    return asked_wait(response.headers) if response is not None else None


def cause_of(error: BaseException) -> BaseException:
    """What went wrong; the Hub's client wraps what stopped the upload of one file in a bare RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def is_passing(error: BaseException) -> bool:
    """Whether an error of the Hub's client or of the network may be gone at the next attempt."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    error = cause_of(error)
    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError, but a lasting one
        return False
    if isinstance(error, HfHubHTTPError):
        return is_passing_status(error.response.status_code)
    if isinstance(error, json.JSONDecodeError):  # a gateway's page where the Hub's answer should be
        return True
    if isinstance(error, RuntimeError):
        # The client closes its shared session when a connection fails in another thread.
        return "closed" in str(error)
    return isinstance(error, network_errors())


def is_passing_status(status: int) -> bool:
    """Rate limits and server errors, but not a storage quota that is used up (507)."""
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 507))
