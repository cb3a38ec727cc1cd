"""Links that carry their own permission: a path, an expiry and an HMAC over both."""

from __future__ import annotations

import hmac
import secrets
import time


class Signer:
    """Signs paths with a secret that lives as long as the hub."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def sign(self, path: str, seconds: float) -> str:
        """``path`` (it may have a query) with an expiry ``seconds`` from now and a signature."""
        link = f"{path}{'&' if '?' in path else '?'}Expires={time.time() + seconds:.3f}"
        return f"{link}&Signature={self._digest(link)}"

    def valid(self, link: str) -> bool:
        """Whether ``link`` is one that ``sign`` made and that has not expired."""
        signed, _, signature = link.rpartition("&Signature=")
        if not hmac.compare_digest(self._digest(signed).encode(), signature.encode()):
            return False
        return time.time() < float(signed.rpartition("Expires=")[2])

    def _digest(self, link: str) -> str:
        return hmac.new(self._secret, link.encode(), "sha256").hexdigest()
