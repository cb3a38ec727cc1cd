"""What looks like a secret comes out of a text here, and nowhere else: tokens, signed addresses, credentials.

Whatever is shown goes through `redact`, and through `hubextrap.foreign_text` after it. It goes by shape, so
that the secrets of other people's errors are caught, and by the value of the secrets in use
(`hubextrap.known_secrets`), which a mirror may give any shape.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hubextrap.known_secrets import known_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hubextrap.known_secrets import Secrets

_OPAQUE = r"(?=[\w.-]*[0-9A-Z])[\w.-]{4,}|[\w.-]{20,}"
"""What follows ``hf_oauth_`` in a token, and not in a key of a Space's card such as hf_oauth_scopes."""
HUB_TOKEN = re.compile(
    rf"(hf_)(?:oauth|jwt)_(?:{_OPAQUE})|(api_org_)[A-Za-z0-9]{{16,}}|(hf_)[A-Za-z0-9]{{24,}}"
)
"""A token of the Hub. It is longer than names that start alike: hf_model, hf_transfer."""

_ADDRESS = re.compile(r"(?i)(\bhttps?:/{1,2}[^\s?'\"<>]+)(\?[^\s'\"<>]*[^\s'\"<>).,;:\]])?")
_IS = r"(?:\\?[\"']?\s*(?:[=:]|%(?:25){0,3}3[AaDd])\s*|[\"']\s*,\s*)b?\\?[\"']?"
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
_RULES: tuple[tuple[str, str, str], ...] = (
    # https://user:password@host, also as a Path has it; hf://gpt2@main is a model
    ("@", r"(?i)\b(?!hf:)([a-z][a-z0-9+.-]{0,15}://|https?:/)[^\s/?#'\"<>]*@", r"\1***@"),
    # the query of a path alone
    ("?", r"\?(?=[\w.~%+-]+=)[^\s'\"<>]*[^\s'\"<>).,;:\]]", "?***"),
    ("=", r"(?i)(?<=[?&;])((?:signature|policy|sig|token|credential)=)[^\s&'\"<>]+", r"\1***"),
    (
        "token|signature|credential|id|key|password|secret",
        rf"(?i)(?:(?<![A-Za-z0-9])|(?<=%3F|%26))({_SECRET_KEYS}{_IS}){_VALUE}",
        r"\1***",
    ),
    ("token|secret", rf"(?i)(?<![\w-])((?:token|secret){_IS})(?:(hf_)\w+|{_LONG_VALUE})", r"\1\2***"),
    (
        "signature|policy|sig|credential",
        rf"(?i)\b((?:signature|policy|sig|credential)(?:=|\\?[\"']\s*:\s*\\?[\"'])){_LONG_VALUE}",
        r"\1***",
    ),
    (
        "authorization",
        rf"(?i)\b(authorization{_IS})(?:(?:basic|bearer|digest|token)\s+{_VALUE}|{_LONG_VALUE})",
        r"\1***",
    ),
    ("bearer", rf"(?i)\b(bearer\s+)(?!token|auth|scheme|realm|error){_VALUE}", r"\1***"),
    (
        "cookie",
        rf"(?i)\b((?:set-)?cookies?{_IS}){_COOKIE}(?:;\s*(?:{_COOKIE}|secure\b|httponly\b))*",
        r"\1***",
    ),
    (
        "<awsaccesskeyid>|<signatureprovided>|<stringtosign>|<canonicalrequest>",
        r"(?i)(<(?:AWSAccessKeyId|SignatureProvided|StringToSign|CanonicalRequest)>)[^<]+",
        r"\1***",
    ),
    ("akia|asia", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "***"),
    # a JSON web token
    ("eyj", r"\beyJ[\w-]{10,}(?:\.[\w-]+){0,4}", "***"),
    # --token V, as usage errors repeat it
    (
        "--",
        (
            r"(?i)(?<![\w-])(--[\w-]{0,40}(?:token|secret|password|api[-_]?key)(?:=|\s{1,9})[\"']?)"
            r"(?-i:(hf_)\w+|(?=[^\s\"']{0,200}(?:\d|[a-z][A-Z]|[A-Z][a-z]))[\w.~+/=%-]{8,})"
        ),
        r"\1\2***",
    ),
)
"""Texts of which one has to be there, in lower case, for the rule to be tried; the rule; what is shown."""
_COMPILED = [(needed.split("|"), re.compile(pattern), shown) for needed, pattern, shown in _RULES]
_BUILT_IN = ("strerror", "filename", "filename2", "msg", "text")
"""Attributes that Python's own errors print, and do not keep in their ``__dict__``."""
_ESCAPED = r"%(?:25){0,3}"
_ENCODED_ADDRESS = re.compile(rf"(?i)(https?{_ESCAPED}3A(?:{_ESCAPED}2F){{2}})([^\s'\"<>]*)")
_ENCODED_QUERY = re.compile(rf"(?i){_ESCAPED}3F")
_ENCODED_USER = re.compile(rf"(?i)\A(?:(?!{_ESCAPED}2F)[^/])*?{_ESCAPED}40")

INVISIBLE = (
    r"\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    r"\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    r"\ufff0-\ufffb\ufffe\uffff\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Of a character class: what terminals act on, what reorders text, what is not seen, and line ends."""
_SEQUENCES = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[@-Z\\^_]"
)
_UNSEEN = rf"(?![\t\n\r])[{INVISIBLE}\u0300-\u036f]"
_WRITTEN = (
    r"\\(?:x|u00)1b\[[0-?]*[ -/]*[@-~]|\\(?:x|u00)1b\][^\\]{0,200}\\(?:x07|u0007|(?:x|u00)1b\\\\)"
    r"|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|\\[abefnrtv]"
)
_HIDING = (re.compile(f"{_SEQUENCES}|{_UNSEEN}"), re.compile(_UNSEEN), re.compile(_WRITTEN))
"""What may stand within a secret and not be seen, also as Python or JSON writes it."""
_WRAP = r"(?:[ \t│|>]{0,40}\r?\n[ \t│|>]{0,40})?"


_GIVEN_AWAY = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]{0,20}PRIVATE KEY"
    # of GitHub, GitLab, OpenAI and Anthropic, Slack, Google
    r"|\b(?:gh[opusr]_[A-Za-z0-9]{36}|github_pat_\w{22}|glpat-[\w-]{20}|sk-(?:proj|svcacct|ant|or)-[\w-]{20}"
    r"|xox[abeprs]-[\w-]{20}|AIza[\w-]{35})"
    r"|(?i:passw(?:or)?d[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?=[^\s\"']{0,200}\d)(?=[^\s\"']{0,200}[a-z])[^\s\"',;]{8})"
    r"|(?i:(?:token|secret|password|api[_-]?key|access[_-]?key|bearer)[\"']?\s{0,4}[:= ]\s{0,4}[\"']?"
    r"(?=[^\s\"']{0,200}\d)(?=[^\s\"']{0,200}[a-z])[\w.~+/=-]{20,})"
)


_HINTS = (
    *("akia", "asia", "private key", "gh", "glpat-", "sk-", "xox", "aiza", "passw", "token", "secret"),
    *("key", "bearer"),
)
"""One of them stands, in some case, in whatever `_GIVEN_AWAY` finds; looking for them takes little time."""


def hub_token_lines(text: str) -> Iterator[int]:
    """On which lines, from 1, tokens of the Hub stand; a line once for each of them."""
    if "hf_" in text or "api_org_" in text:
        for token in HUB_TOKEN.finditer(text):
            yield text.count("\n", 0, token.start()) + 1


def holds_secret(text: str) -> bool:
    """Whether a file's text gives a secret away: a narrower test than `redact`'s, as vocabularies hold any
    word and licences any address."""
    if any(hub_token_lines(text)):
        return True
    folded = text.casefold()
    if any(hint in folded for hint in _HINTS) and _GIVEN_AWAY.search(text):
        return True
    return any(written in text for written, _ in known_secrets())


def redact(text: str, known: Secrets | None = None) -> str:
    """``text`` with what looks like a secret, and the secrets in use, replaced by ``***``.

    Where one of them has invisible characters in it, the text comes without them.

    Args:
        known: `known_secrets`, for whoever redacts many texts: looking for them takes longer than all else.
    """
    known = known_secrets() if known is None else known
    shown = _redact(text, known)
    if shown.isprintable() and "\\" not in shown:
        return shown
    for hiding in _HIDING:
        bare = hiding.sub("", shown)
        if bare != shown and (found := _redact(bare, known)) != bare:
            return redact(found, known)
    return shown


def _redact(text: str, known: Secrets) -> str:
    for written, shown in known:
        if written in text:
            text = text.replace(written, shown)
        elif "\n" in text and len(written) <= len(text):
            text = _wrapped(written).sub(shown, text)
    if "hf_" in text or "api_org_" in text:
        text = HUB_TOKEN.sub(lambda found: f"{next(filter(None, found.groups()))}***", text)
    text = _ADDRESS.sub(lambda found: found[1] + ("?***" if found[2] else ""), text)
    if "%" in text:
        text = _ENCODED_ADDRESS.sub(_without_secrets, text)
    folded = text.casefold()
    for needed, pattern, shown in _COMPILED:
        if any(part in folded for part in needed):
            text = pattern.sub(shown, text)
    return text


@lru_cache(maxsize=512)
def _wrapped(secret: str) -> re.Pattern[str]:
    """The secret as it looks when it was wrapped at the end of a line."""
    return re.compile(_WRAP.join(map(re.escape, secret[:_CHECKED])) + (r"\S*" if secret[_CHECKED:] else ""))


_CHECKED = 100


def _without_secrets(found: re.Match[str]) -> str:
    """A percent-encoded address without its user and its query."""
    rest = _ENCODED_USER.sub("***%40", found[2])
    if query := _ENCODED_QUERY.search(rest):
        rest = f"{rest[: query.end()]}***"
    return found[1] + rest


def rewrite_error(error: BaseException | None, rewrite: Callable[[str], str]) -> None:
    """Rewrite the texts of ``error`` and of all that it came from, in place: a traceback shows them.

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
            if (shown := _rewritten(value, rewrite)) != value:
                with suppress(AttributeError, TypeError):  # it cannot be set
                    setattr(one, name, shown)


def _rewritten(value: Any, rewrite: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if type(value) in (list, tuple):
        return type(value)(_rewritten(each, rewrite) for each in value)
    return value
