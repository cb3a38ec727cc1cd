"""The variables that set huggingface_hub up: what is wrong with one is said before it is used."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from urllib.parse import urlsplit

from hubextrap.errors import HubExtrapError

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_settings() -> None:
    """See that every variable that is set can be used.

    Raises:
        HubExtrapError: one cannot; names it and says what it may be.
    """
    for name in _SECONDS:
        value = os.environ.get(name, "").strip()
        if value and not (value.isascii() and value.isdecimal() and len(value) <= 6):
            raise HubExtrapError(f"{name}={value[:40]!r} is not a number of seconds; set it to, e.g., 30")
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and _scheme(endpoint) not in ("http", "https"):
        raise HubExtrapError(
            f"HF_ENDPOINT={endpoint[:80]!r} is not an address; set it to, e.g., https://huggingface.co, or "
            "unset it"
        )
    for name in _PROXIES:
        if not (value := os.environ.get(name, "")):
            continue
        scheme = _scheme(value if "://" in value else f"http://{value}")
        if scheme not in _PROXY_SCHEMES:
            raise HubExtrapError(
                f"{name} is not the address of a proxy; set it to, e.g., http://host:8080, or unset it"
            )
        if scheme.startswith("socks") and find_spec("socksio") is None:
            raise HubExtrapError(f"{name} is a SOCKS proxy, which needs: pip install socksio")
    for name in _TOKENS:
        value = os.environ.get(name, "").replace("\r", "").replace("\n", "").strip()
        if not (value.isascii() and value.isprintable() and " " not in value):
            raise HubExtrapError(
                f"{name} holds characters that a token cannot have; copy it again from the Hub's settings"
            )


def proxy_in_use() -> str | None:
    """The variable that sets a proxy, if any does."""
    return next((name for name in _PROXIES if os.environ.get(name)), None)


@lru_cache(maxsize=16)  # asked before every request
def _scheme(address: str) -> str | None:
    """Scheme of an address with a host; None where it is none."""
    try:
        parts = urlsplit(address)
        return parts.scheme if parts.hostname and (parts.port is None or parts.port > 0) else None
    except ValueError:
        return None
