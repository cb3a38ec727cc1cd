"""The secrets that this process can name by their value: tokens, passwords of proxies, keys of a trainer.

A mirror may give its tokens any shape, and a shape that is too wide takes names for tokens.
"""

from __future__ import annotations

import os
import re
import sys
from base64 import b64encode
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from json import dumps
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Secrets = tuple[tuple[str, str], ...]
"""Every way in which each is written, and what is shown instead; the longest first."""

SHORTEST = 8
"""A shorter one may be part of any word."""
_LONGEST = 16_384
_BIGGEST_FILE = 1 << 20
_TOKENS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
    "HUBEXTRAP_HUB_TOKEN",
)
_SURE = ("SECRET", "PASSWORD", "PASSWD")
_ENDINGS = ("TOKEN", "KEY", *_SURE)
"""What names of variables that hold secrets end in; where it is not sure, the value has to look like one."""
_NO_SECRET = re.compile(
    r"(?:[A-Za-z]{1,12}|\d{1,12})(?:[-_. :,]+(?:[A-Za-z]{1,12}|\d{1,12}))*|[~.]{0,2}[/\\].*|[A-Za-z]:\\.*"
)
"""Words, numbers, paths."""
_USERINFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}://([^\s/?#]*)@")
_FLAG = re.compile(r"(?i)--?[\w-]{0,40}(?:token|secret|password|api[-_]key)(?:=(.*))?", re.DOTALL)
_PAIR = re.compile(
    r"(?i)(?:^|[,\s{])[\"']?(?:\w{1,40}_)?(?:token|secret|password|api_key)[\"']?[=:]\s*[\"']?([^\s,\"'}]+)"
)


def known_secrets() -> Secrets:
    """Those at this moment."""
    return _written(frozenset(value for value in _candidates() if SHORTEST <= len(value) <= _LONGEST))


@lru_cache(maxsize=8)
def _written(values: frozenset[str]) -> Secrets:
    forms: dict[str, str] = {}
    for value in values:
        shown = "hf_***" if value.startswith("hf_") else "***"
        for form in (value, *_encoded(value)):
            forms.setdefault(form, shown)
    return tuple(sorted(forms.items(), key=lambda item: (-len(item[0]), item[0])))


def _encoded(value: str) -> Iterator[str]:
    for text in (quote(value, safe=""), quote(value), quote(quote(value, safe=""), safe="")):
        yield text
        yield re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text)
    for ascii_only in (True, False):
        yield dumps(value, ensure_ascii=ascii_only)[1:-1]
    data = value.encode(errors="surrogateescape")
    for before in range(3):  # in base64 a secret looks in three ways, by what stands before it
        text = b64encode(b"\0" * before + data).decode()
        inside = text[(0, 2, 3)[before] : (before + len(data)) * 8 // 6]
        yield inside
        yield inside.replace("+", "-").replace("/", "_")


def _candidates() -> Iterator[str]:
    for name, value in os.environ.items():
        if name in _TOKENS or (
            (ending := name[-8:].upper()).endswith(_ENDINGS)
            and "://" not in value
            and (ending.endswith(_SURE) or not _NO_SECRET.fullmatch(value[:1000]))
        ):
            yield value.strip()
        if "://" in value and len(value) <= _LONGEST:  # proxies, HF_ENDPOINT, data bases
            yield from _in_address(value)
    yield from _in_arguments(tuple(sys.argv))
    yield from _of_the_client()
    token = _token_file()
    yield from _read(token, lambda text: [text.strip()])
    yield from _read(f"{os.path.dirname(token)}/stored_tokens", _stored)  # noqa: PTH120
    yield from _read(_expanded(os.environ.get("NETRC") or "~/.netrc"), _netrc)


def _in_address(text: str) -> Iterator[str]:
    for user in _USERINFO.findall(text):
        name, _, password = user.partition(":")
        for part in (password, name if not password else ""):
            if not _NO_SECRET.fullmatch(part) or part is password:
                yield part
                yield unquote(part)


@lru_cache(maxsize=8)
def _in_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        if flag := _FLAG.fullmatch(argument):
            found.append(flag[1] if flag[1] is not None else "" if following.startswith("-") else following)
        elif len(argument) <= _LONGEST:
            found += [value for value in _PAIR.findall(argument) if not _NO_SECRET.fullmatch(value)]
    return tuple(found)


def _of_the_client() -> Iterator[str]:
    """What the endpoint gave its client for a while: for Xet, and in exchange for a CI job's identity."""
    auth = sys.modules.get("huggingface_hub.utils._auth")
    if isinstance(held := getattr(auth, "_OIDC_TOKEN_CACHE", None), dict):
        yield str(held.get("token", ""))
    xet = sys.modules.get("huggingface_hub.utils._xet")
    cache = getattr(xet, "XET_CONNECTION_INFO_CACHE", None)
    for info in list(cache.values()) if isinstance(cache, dict) else ():
        yield str(getattr(info, "access_token", ""))


_read_before: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {}


def _read(path: str, reader: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """What ``reader`` finds in the text of the file, read anew when it has changed."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as below
    except (OSError, ValueError):
        return ()
    state = (status.st_ino, status.st_mtime_ns, status.st_size)
    before = _read_before.get(path)
    if before is None or before[0] != state:
        found: tuple[str, ...] = ()
        if S_ISREG(status.st_mode) and status.st_size <= _BIGGEST_FILE:
            with suppress(OSError, ValueError):
                found = tuple(reader(Path(path).read_text(encoding="utf-8")))
        before = _read_before[path] = (state, found)
    return before[1]


def _stored(text: str) -> Iterator[str]:
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "hf_token":
            yield value.strip()


def _netrc(text: str) -> Iterator[str]:
    for word, following in pairwise(text.split()):
        if word == "password":
            yield following.strip("\"'")


def _token_file() -> str:
    """Where `hf auth login` keeps the token: what the client says, if it is imported already."""
    client = sys.modules.get("huggingface_hub.constants")
    known = getattr(client, "HF_TOKEN_PATH", None) or os.environ.get("HF_TOKEN_PATH")
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return _expanded(known or f"{home}/token")


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 - a Path costs more than all the rest
