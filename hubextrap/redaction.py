"""What looks like a secret comes out of a text here, and nowhere else: tokens, signed addresses, credentials.

Every error of ours, every line of progress and every log record of the Hub's client goes through `redact`. It
goes by shape, so that the secrets of other people's errors are caught, and by the value of the tokens in use,
which a mirror may give any shape.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

_OPAQUE = r"(?=[\w.-]*[0-9A-Z])[\w.-]{4,}|[\w.-]{20,}"
"""What follows ``hf_oauth_`` in a token, and not in a key of a Space's card such as hf_oauth_scopes."""
_APART, _END = r"(?<![\w./\\-])", r"(?![A-Za-z0-9/\\]|[._-]\w)"
"""Around what is no part of a path, such as hf_Qwen25Math7BInstruct/config.json."""
HUB_TOKEN = re.compile(
    rf"(hf_)(?:oauth|jwt)_(?:{_OPAQUE})|(api_org_)[A-Za-z0-9]{{16,}}"
    rf"|(hf_)[A-Za-z0-9]{{24,}}|{_APART}(hf_)[A-Za-z0-9]{{16,}}{_END}"
)
"""A token of the Hub. It is longer than names that start alike: hf_model, hf_transfer."""

_ADDRESS = re.compile(r"(?i)(\bhttps?://[^\s?'\"<>]+)(\?[^\s'\"<>]*[^\s'\"<>).,;:\]])?")
_IS = r"(?:\\?[\"']?\s*[=:]\s*|[\"']\s*,\s*)b?\\?[\"']?"
"""Between a key and its value: of JSON, a query, a header, keyword arguments, pairs."""
_NOT_SECRET = r"(?!(?:None|null|true|false)\b|\*\*\*|\$)"
_VALUE = rf"{_NOT_SECRET}[^\s\"'&;,<>)}}\]\\]+"
_LONG_VALUE = rf"{_NOT_SECRET}[\w.~+/=%-]{{16,}}"
_COOKIE = r"[\w.-]+=[^\s;\"',]*"

_SECRET_KEYS = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|x-xet-access-token|key-pair-id|awsaccesskeyid"
    r"|googleaccessid|(?:access|refresh|id|session|subject)_?token|client_?secret|secret_?access_?key|api[_-]?key"
    r"|hf[_-](?:api[_-])?token|hugging_?face_?(?:hub_?)?(?:api_?)?token|auth[_-]token|private[_-]token"
    r"|(?:xet|cas)_?token|password)"
)
_RULES = {
    # https://user:password@host; hf://gpt2@main is a model
    r"(?i)\b(?!hf:)([a-z][a-z0-9+.-]{0,15}://)[^\s/?#'\"<>]*@": r"\1***@",
    # the query of a path alone
    r"\?(?=[\w.~%+-]+=)[^\s'\"<>]*[^\s'\"<>).,;:\]]": "?***",
    r"(?i)(?<=[?&;])((?:signature|policy|sig|token|credential)=)[^\s&'\"<>]+": r"\1***",
    rf"(?i)(?<![A-Za-z0-9])({_SECRET_KEYS}{_IS}){_VALUE}": r"\1***",
    rf"(?i)(?<![\w-])((?:token|secret){_IS})(?:(hf_)\w+|{_LONG_VALUE})": r"\1\2***",
    rf"(?i)\b((?:signature|policy|sig|credential)(?:=|\\?[\"']\s*:\s*\\?[\"'])){_LONG_VALUE}": r"\1***",
    rf"(?i)\b(authorization{_IS})(?:(?:basic|bearer|digest|token)\s+{_VALUE}|{_LONG_VALUE})": r"\1***",
    rf"(?i)\b(bearer\s+)(?!token|auth|scheme|realm|error){_VALUE}": r"\1***",
    rf"(?i)\b((?:set-)?cookies?{_IS}){_COOKIE}(?:;\s*(?:{_COOKIE}|secure\b|httponly\b))*": r"\1***",
    r"(?i)(<(?:AWSAccessKeyId|SignatureProvided|StringToSign|CanonicalRequest)>)[^<]+": r"\1***",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b": "***",
    # a JSON web token
    r"\beyJ[\w-]{10,}(?:\.[\w-]+){0,4}": "***",
    # a mirror's short token, and not hf_checkpoint1000
    rf"{_APART}hf_(?!transformers\b|[a-z]+\d+\b)[A-Za-z0-9]{{12,15}}{_END}": "hf_***",
}
_BUILT_IN = ("strerror", "filename", "filename2", "msg", "text")
"""Attributes that Python's own errors print, and do not keep in their ``__dict__``."""
_COMPILED = [(re.compile(pattern), shown) for pattern, shown in _RULES.items()]


def redact(text: str) -> str:
    """``text`` with what looks like a secret, and the tokens in use, replaced by ``***``."""
    for value in _tokens_in_use():
        for written in {value, quote(value, safe="")}:
            text = text.replace(written, "hf_***" if value.startswith("hf_") else "***")
    text = HUB_TOKEN.sub(lambda found: f"{next(filter(None, found.groups()))}***", text)
    text = _ADDRESS.sub(lambda found: found[1] + ("?***" if found[2] else ""), text)
    for pattern, shown in _COMPILED:
        text = pattern.sub(shown, text)
    return text


def redact_error(error: BaseException | None) -> None:
    """Redact the texts of ``error`` and of all that it came from, in place: a traceback shows them.

    Reaches ``args`` and attributes, of which nearly all errors make what they print.
    """
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        pending += [one.__cause__, one.__context__, *one.args, *getattr(one, "exceptions", ())]
        for name in ("args", *_BUILT_IN, *getattr(one, "__dict__", ())):
            value = getattr(one, name, None)
            if (shown := _redacted(value)) != value:
                with suppress(AttributeError, TypeError):  # it cannot be set
                    setattr(one, name, shown)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    return type(value)(map(_redacted, value)) if type(value) in (list, tuple) else value


class RedactingFilter(logging.Filter):
    """For loggers of libraries that log whole addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (shown := redact(said)) != said:
            record.msg, record.args = shown, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return True


def _tokens_in_use() -> list[str]:
    """Where huggingface_hub takes tokens from; the longest first, and none so short that words hold it."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    found = {os.environ.get(name, "").strip() for name in names}
    with suppress(OSError, ValueError, RuntimeError):  # no such file, or no home folder
        found.add(_token_file().read_text(encoding="utf-8").strip())
    return sorted((value for value in found if len(value) >= 8), key=len, reverse=True)


def _token_file() -> Path:
    """Where `hf auth login` keeps the token: what the client says, if it is imported already."""
    client = sys.modules.get("huggingface_hub.constants")
    known = getattr(client, "HF_TOKEN_PATH", None) or os.environ.get("HF_TOKEN_PATH")
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(known or f"{home}/token")).expanduser()
