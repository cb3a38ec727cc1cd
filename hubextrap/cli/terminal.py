"""What commands print: lines, JSON, tables; all that others wrote in them is fit for a terminal.

Other programs' words, which pass by these functions, go through the streams: see `guarded`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import sys
import warnings
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer

from hubextrap.foreign_text import (
    as_shown,
    json_text,
    log_record,
    log_text,
    redacted,
    terminal_output,
)
from hubextrap.narrow import columns, fitted
from hubextrap.redaction import redact, rewrite_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

_STYLES = re.compile(r"(\x1b\[(?:[0-9;]*m|\d*[A-DGJK]|\?25[hl]))")
"""What Rich and progress bars write to a terminal: colours, and the way back over a bar."""


_STYLING = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
"""Any of them has typer use colours where there is no terminal."""


def tell(text: object, *, err: bool = False, whole: bool = False) -> None:
    """Print a line, or several where the terminal is narrower than it is and it need not stay ``whole``."""
    shown = as_shown(str(text))
    typer.echo(shown if whole else fitted(shown, sys.stderr if err else sys.stdout), err=err)


def tell_json(value: Any) -> None:
    """Print values, or a model of pydantic's, as JSON."""
    is_model = hasattr(value, "model_dump_json")
    plain = value.model_dump(mode="json") if is_model else value
    shown = redacted(plain)
    as_it_is = is_model and shown == plain
    if as_it_is:
        text = value.model_dump_json(indent=2)
    else:
        text = json.dumps(_in_json(shown), indent=2, allow_nan=False)
    typer.echo(json_text(text))


def _in_json(value: Any) -> Any:
    """With a text for each number that JSON has none for, as models write them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        return list(map(_in_json, value))
    return {key: _in_json(each) for key, each in value.items()} if isinstance(value, dict) else value


def console(otherwise: int = 200) -> Console:
    """Rich's on stdout, as wide as the terminal, or ``otherwise`` where there is none."""
    from rich.console import Console

    return Console(width=columns(sys.stdout) or otherwise, highlight=False, markup=False)


def clean_error(error: BaseException) -> None:
    """Make what the command line's own errors repeat fit for the terminal; Rich draws them in a box."""
    rewrite_error(error, lambda text: terminal_output(redact(text)))


@contextmanager
def guarded() -> Iterator[None]:
    """Have no library act on the terminal, or show a secret, by what it prints, warns of or logs."""
    with ExitStack() as undo:
        undo.callback(logging.setLogRecordFactory, logging.getLogRecordFactory())
        logging.setLogRecordFactory(log_record)
        undo.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = _cleaned(warnings.formatwarning)
        for stream, clean in ((sys.stdout, terminal_output), (sys.stderr, _redacted_output)):
            _guard(stream, clean, undo)
        yield


@contextmanager
def redacting_stdout() -> Iterator[None]:
    """Have another program print no secret: its settings are in its tables, and a token in its settings."""
    with ExitStack() as undo:
        _guard(sys.stdout, _redacted_output, undo)
        yield


def _cleaned(made: Callable[..., str]) -> Callable[..., str]:
    return lambda *given, **named: log_text(made(*given, **named).rstrip("\n")) + "\n"


def _redacted_output(text: str) -> str:
    return terminal_output(redact(text))


def _guard(stream: TextIO | None, clean: Callable[[str], str], undo: ExitStack) -> None:
    """Clean what is written, styles of a terminal left in where there is one."""
    if stream is None:
        return
    styled = stream.isatty() or any(map(os.environ.get, _STYLING))
    write = stream.write

    def written(text: Any) -> int:
        if not isinstance(text, str) or text == "\n":
            return write(text)
        parts = _STYLES.split(text) if styled else [text]
        write("".join(part if place % 2 else clean(part) for place, part in enumerate(parts)))
        return len(text)

    with suppress(AttributeError, TypeError):  # a stream that has no place for it
        stream.write = written  # type: ignore[method-assign]
        undo.callback(_unguard, stream, write)


def _unguard(stream: TextIO, write: Callable[[str], int]) -> None:
    with suppress(AttributeError, TypeError):
        del stream.write
    if stream.write != write:
        with suppress(AttributeError, TypeError):  # it had one of its own before
            stream.write = write  # type: ignore[method-assign]


def as_argument(path: Path) -> str:
    """A path as a shell takes it, in a command that is to be copied; never an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
