"""What the Hub says when it refuses a push, in our words."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, PushError
from hubextrap.hub_access import (
    UNUSABLE,
    first_line,
    is_oidc_exchange,
    network_errors,
    not_understood,
    oidc_remedy,
)
from hubextrap.hub_client import BeyondBounds, token_kept
from hubextrap.hub_settings import check_settings
from hubextrap.patience import cause_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMEDIES = {
    400: "check the repo's name and the revision",
    401: "log in with `hf auth login`, or set HF_TOKEN to a valid token with write rights on this repo",
    402: "the account's storage quota is used up; free space or upgrade it, then push again",
    403: "use a token with write rights on this repo, check the storage quota, or push under your own name",
    404: "check the repo's name; if it is private, check that the token may read it",
    409: "somebody else is writing there; push again once they are done",
    412: "somebody else keeps pushing there; push again once they are done",
    413: "too large for the Hub; check the storage quota and write smaller shards",
    507: "the account's storage quota is used up; free space or upgrade it, then push again",
}
_OTHER_REMEDY = "run the same command again later; what was uploaded is not sent twice"


@contextmanager
def push_errors(what: str) -> Iterator[None]:
    """Turn what the client raises into PushError; ``what`` names the target, e.g. ``me/model@step_400``."""
    check_settings()
    try:
        with token_kept():
            yield
    except HubExtrapError:
        raise
    except Exception as error:  # an answer of another shape may end in any error of the client's
        raise PushError(f"{what}: {_explained(error)}", repo=what.partition("@")[0]) from error


def _explained(error: Exception) -> str:
    from huggingface_hub import errors as hub

    cause = cause_of(error)
    said = first_line(cause) or type(cause).__name__
    if isinstance(cause, BeyondBounds):
        return str(cause)
    if isinstance(cause, hub.OIDCError) or is_oidc_exchange(cause):
        return oidc_remedy(cause)
    if isinstance(cause, hub.HfHubHTTPError):
        status = cause.response.status_code
        server = first_line(Exception(cause.server_message or ""))
        said = f"the Hub answered {status}" + (f" ({server})" if server else "")
        lost = status == 404 and is_lost_upload(error)
        return f"{said}: {_OTHER_REMEDY if lost else _REMEDIES.get(status, _OTHER_REMEDY)}"
    if isinstance(cause, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if isinstance(cause, network_errors()):
        if "/xet-write-token/" in said and "404" in said:  # hf-xet raises no HTTP error of its own
            return (
                "this Hub does not offer Xet, or the repo is gone; set HF_HUB_DISABLE_XET=1, then push again"
            )
        return f"cannot reach the Hub ({said}); check the network and HF_ENDPOINT, then push again"
    if isinstance(cause, UNUSABLE):
        return not_understood(cause)
    return f"{said}; {_OTHER_REMEDY}"


def is_conflict(error: BaseException) -> bool:
    """Whether the Hub refused because the branch is not where we took it to be."""
    from huggingface_hub import errors as hub

    return isinstance(error, hub.HfHubHTTPError) and error.response.status_code in (409, 412)


def is_lost_upload(error: BaseException) -> bool:
    """Whether the storage refused an upload's link, or does not have what it took: a new link may help."""
    from huggingface_hub import errors as hub

    error = cause_of(error)
    if not isinstance(error, hub.HfHubHTTPError):
        return False
    request, status = error.response.request, error.response.status_code
    return (request.method == "PUT" and status == 403) or (
        request.url.path.endswith("/objects/verify") and status == 404
    )


def refused_commit(error: BaseException) -> str | None:
    """What the Hub has against a commit's content, if that is what an error came from."""
    from huggingface_hub import errors as hub

    cause = error.__cause__
    if not isinstance(cause, hub.HfHubHTTPError) or cause.response.status_code not in (400, 404, 422):
        return None
    return str(cause) if "/commit/" in cause.response.request.url.path else None
