"""What the Hub says when it refuses a push, in our words; and what is worth trying again."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from hubextrap.errors import HubExtrapError, PushError
from hubextrap.hub_access import is_oidc_exchange, network_errors, oidc_remedy, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds; each pause is four times the one before

_T = TypeVar("_T")

_REMEDIES = {
    400: "check the repo's name and the revision",
    401: "log in with `hf auth login`, or set HF_TOKEN to a valid token with write rights on this repo",
    402: "the account's storage quota is used up; free space or upgrade it, then push again",
    403: "use a token with write rights on this repo, check the storage quota, or push under your own name",
    404: "check the repo's name, and that the token opens it if it is private",
    409: "somebody else is writing there; push again once they are done",
    412: "somebody else keeps pushing there; push again once they are done",
    413: "too large for the Hub; check the storage quota and write smaller shards",
    507: "the account's storage quota is used up; free space or upgrade it, then push again",
}
_OTHER_REMEDY = "run the same command again later; what was uploaded is not sent twice"


@contextmanager
def push_errors(what: str) -> Iterator[None]:
    """Turn what the client raises into PushError; ``what`` names the target, e.g. ``me/model@step_400``."""
    from huggingface_hub import errors as hub

    caught: tuple[type[Exception], ...] = (
        RuntimeError,
        ValueError,
        OSError,
        hub.OIDCError,
        *network_errors(),
    )
    try:
        yield
    except HubExtrapError:
        raise
    except caught as error:
        # The client wraps what stopped the upload of one file in a bare RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        said = without_secrets(_first_line(cause))
        if isinstance(cause, hub.OIDCError) or is_oidc_exchange(cause):
            raise PushError(f"{what}: {oidc_remedy(cause)}") from error
        if isinstance(cause, hub.HfHubHTTPError):
            status = cause.response.status_code
            server = without_secrets((cause.server_message or "").strip())
            said = f"the Hub answered {status}" + (f" ({server})" if server else "")
            raise PushError(f"{what}: {said}: {_REMEDIES.get(status, _OTHER_REMEDY)}") from error
        if isinstance(cause, hub.OfflineModeIsEnabled):
            raise PushError(f"{what}: HF_HUB_OFFLINE is set; unset it to push") from error
        if isinstance(cause, network_errors()):
            reason = said or type(cause).__name__
            raise PushError(
                f"{what}: cannot reach the Hub ({reason}); check the network and HF_ENDPOINT, then push again"
            ) from error
        raise PushError(f"{what}: {said}; {_OTHER_REMEDY}") from error


def retried(call: Callable[[], _T], attempts: int = ATTEMPTS) -> _T:
    """``call()``, again after a pause while it fails for a passing reason, ``attempts`` times in all."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            pause(attempt, error)
    return call()


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: server errors, rate limits, lost connections."""
    from huggingface_hub import errors as hub

    if isinstance(error, RuntimeError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or (status >= 500 and status != 507)
    if isinstance(error, json.JSONDecodeError):  # a gateway's page where the Hub's answer should be
        return True
    return isinstance(error, network_errors()) and not isinstance(error, hub.OfflineModeIsEnabled)


def is_conflict(error: BaseException) -> bool:
    """Whether the Hub refused because the branch is not where we took it to be."""
    from huggingface_hub import errors as hub

    return isinstance(error, hub.HfHubHTTPError) and error.response.status_code in (409, 412)


def pause(attempt: int, error: BaseException) -> None:
    """Wait before attempt ``attempt + 1``: longer each time, and at least as long as the server asks."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    seconds = max(_FIRST_PAUSE * 4**attempt, float(asked) if asked.isdigit() else 0.0)
    time.sleep(min(seconds, _LONGEST_PAUSE))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
