"""How the hub says no."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """A request that is answered with an error; ``code`` decides which exception the client raises."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body
        self.headers: dict[str, str] = {}
