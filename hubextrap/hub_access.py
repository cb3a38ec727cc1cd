"""The one way to the Hub: a client with our name on it, and its errors in our words.

Tokens come from where huggingface_hub takes them (HF_TOKEN or `hf auth login`); hubextrap never holds one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hubextrap._version import __version__
from hubextrap.errors import AccessDenied, HubExtrapError, ReferenceNotFound, SourceError
from hubextrap.foreign_text import clean_record, log_record
from hubextrap.hub_client import BeyondBounds, http_libraries, token_kept, use_bounded_client
from hubextrap.hub_settings import check_settings, proxy_in_use
from hubextrap.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from huggingface_hub import HfApi

_SHOWN = 500
_LIBRARIES = (
    *("root", "huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "h2", "hpack"),
    *("urllib3", "requests", "filelock", "fsspec", "asyncio", "py.warnings", "transformers", "datasets"),
    *("evaluate", "lm_eval", "accelerate", "mergekit", "safetensors", "tokenizers", "torch", "matplotlib"),
    *("vllm", "peft", "trl", "PIL", "numba", "hubextrap"),
)
"""Whose log records are made clean; ``root`` is where many of them log by accident."""
_KEPT_TO_THE_ENDPOINT = {
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
UNUSABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    ArithmeticError,
)
"""What the client raises over an answer of another shape than the Hub's."""


def hub_api() -> HfApi:
    """The client for every call to the Hub."""
    check_settings()
    from huggingface_hub import HfApi

    redact_logs()
    use_bounded_client()
    return HfApi(library_name="hubextrap", library_version=__version__)


def keep_to_the_endpoint() -> None:
    """Keep the libraries that load models and data sets from telling anyone but HF_ENDPOINT what they load.

    Left alone, datasets and evaluate count each load at a fixed public address, by the data set's name;
    datasets asks ``datasets-server.`` + HF_ENDPOINT's host for details, with the token; transformers hands a
    repo without safetensors to a public converter, with the token; and vLLM reports its use. Call it once
    datasets is imported, if it will be. Variables that the user has set stay.
    """
    for name, value in _KEPT_TO_THE_ENDPOINT.items():
        os.environ.setdefault(name, value)
    counted = os.environ["HF_UPDATE_DOWNLOAD_COUNTS"].upper() in ("1", "ON", "YES", "TRUE", "AUTO")
    for library in ("datasets", "evaluate"):  # they read the variables when they are imported
        if config := sys.modules.get(f"{library}.config"):
            config.HF_UPDATE_DOWNLOAD_COUNTS = counted  # type: ignore[attr-defined]
            if "HF_ENDPOINT" in os.environ:  # the public Hub has such a server of its own
                config.USE_PARQUET_EXPORT = False  # type: ignore[attr-defined]


def network_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library under huggingface_hub and of sockets."""
    http, _ = http_libraries()
    return (http.HTTPError, http.InvalidURL, ConnectionError, TimeoutError)


def is_oidc_exchange(error: BaseException) -> bool:
    """Whether what failed is the exchange of a CI job's identity for a token (Trusted Publishers)."""
    response = getattr(error, "response", None)
    return response is not None and response.url.path.endswith("/oauth/token")


def oidc_remedy(error: BaseException) -> str:
    """What to do where Trusted Publishers (HF_OIDC_RESOURCE) gave no token."""
    resource = os.environ.get("HF_OIDC_RESOURCE", "")
    said = first_line(error)
    return (
        f"no token by Trusted Publishers for {resource!r} ({said}); check that its settings on the Hub trust "
        "this workflow and that the job has `permissions: id-token: write`, or unset HF_OIDC_RESOURCE and "
        "set HF_TOKEN"
    )


def reason(error: BaseException) -> str:
    """The first line of a library's error, for one of ours."""
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without secrets, and the next one where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = next((n for n, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    line = redact(" ".join(lines[:count]))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


@contextmanager
def hub_errors(what: str, kind: type[HubExtrapError] = SourceError) -> Iterator[None]:
    """Turn the client's errors into ours; ``what`` names the thing asked for, e.g. ``me/model@step_100``.

    Raises:
        AccessDenied: gated or private.
        ReferenceNotFound: no such repo, revision or file.
        HubExtrapError: of class ``kind``, for anything else that goes wrong on the way.
    """
    check_settings()
    try:
        with token_kept():
            yield
    except HubExtrapError:
        raise
    except Exception as error:
        ours, said = _in_our_words(error, kind)
        raise ours(f"{what}: {said}") from error


def _in_our_words(error: Exception, kind: type[HubExtrapError]) -> tuple[type[HubExtrapError], str]:
    """The class that an error of the client's becomes, and what is said of it."""
    from huggingface_hub import errors as hub

    if isinstance(error, BeyondBounds):
        return kind, str(error)
    if isinstance(error, hub.GatedRepoError):
        return AccessDenied, (
            "the repo is gated; ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return ReferenceNotFound, (
            "no such repo, or it is private; check the name, and if it is private log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, hub.BucketNotFoundError):
        return ReferenceNotFound, (
            "no such bucket, or it is private; check the name, and if it is private log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return ReferenceNotFound, "no such revision; `hubextrap steps` lists what is there"
    if isinstance(error, hub.EntryNotFoundError):
        return ReferenceNotFound, "no such file on the Hub"
    if isinstance(error, (hub.HFValidationError, hub.HfUriError)):
        return ReferenceNotFound, first_line(error)
    if isinstance(error, hub.OIDCError) or (
        isinstance(error, hub.HfHubHTTPError) and is_oidc_exchange(error)
    ):
        return AccessDenied, oidc_remedy(error)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return kind, "HF_HUB_OFFLINE is set; unset it, or use a local folder"
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return AccessDenied, (
                f"the Hub refused access ({status}); check that HF_TOKEN is valid and has the rights that "
                "this needs"
            )
        return kind, f"the Hub answered {status}: {first_line(error)}"
    if isinstance(error, network_errors()):
        said, proxy = first_line(error) or type(error).__name__, proxy_in_use()
        settings = f", HF_ENDPOINT and {proxy}" if proxy else " and HF_ENDPOINT"
        return kind, (
            f"cannot reach the Hub ({said}); check the network{settings}, then run the same command again"
        )
    if isinstance(error, OSError):
        return kind, (
            f"the Hub's client does not work ({first_line(error)}); check SSL_CERT_FILE, the folders that "
            "HF_ variables name, and the disk"
        )
    return kind, not_understood(error)  # an answer of another shape may end in any error of the client's


def not_understood(error: BaseException) -> str:
    """What to say of an error of the client's that is none of its own classes."""
    if isinstance(error, UnicodeEncodeError):
        return (
            "the token holds characters that a token cannot have; log in again with `hf auth login`, or set "
            "HF_TOKEN"
        )
    if isinstance(error, json.JSONDecodeError):
        return (
            "the Hub's answer is not JSON; perhaps a proxy or a captive portal answers in its place: log in "
            "there, or check HF_ENDPOINT and HTTPS_PROXY"
        )
    return f"the Hub's answer cannot be understood ({reason(error)}); check HF_ENDPOINT and the name"


def redact_logs() -> None:
    """Keep secrets, and what a terminal acts on, out of what libraries log: whole addresses, many signed.

    A record is made clean, whoever handles it and however late its logger is made. Records of the program
    that uses hubextrap are its own.
    """
    made = logging.getLogRecordFactory()
    if made is not log_record and not getattr(made, "cleans", False):
        logging.setLogRecordFactory(_cleaning(made))


def _cleaning(made: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make(name: str, *given: Any, **named: Any) -> logging.LogRecord:
        record = made(name, *given, **named)
        return clean_record(record) if name.partition(".")[0] in _LIBRARIES else record

    make.cleans = True  # type: ignore[attr-defined]
    return make
