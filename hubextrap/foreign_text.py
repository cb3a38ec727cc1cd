"""How text that others wrote comes out: one function for each way out, and no other way.

Names of branches, files, tensors and tasks, commit titles, a server's words, a trainer's lines: each may hold
what a terminal, a browser, a Markdown renderer or a CI runner acts on. What goes out is redacted first, and
then what could act is shown instead of acting. Harmless text comes out as it went in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from hubextrap.known_secrets import known_secrets
from hubextrap.redaction import INVISIBLE, redact

LONGEST = 4000
"""Characters of a line; the middle of a longer one is left out."""
_NAMED = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0e31-\u0e3a\u0e47-\u0e4e"
    r"\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\ufe20-\ufe2f"
)
"""What is drawn upon the letter before it: many in a row are no writing, and spill over other lines."""
_JOINED = r"(?<=[\u2190-\u2bff\U0001f000-\U0001faff\ufe0f])\u200d(?=[\u2190-\u2bff\U0001f000-\U0001faff])"
_STYLED = r"(?<=[0-9#*\xa9\xae\u203c-\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
_ACTING = re.compile(rf"({_JOINED}|{_STYLED})|[{INVISIBLE}]|(?<=[{_MARKS}]{{4}})[{_MARKS}]")
"""The group: what belongs to an emoji, and stays."""
_RUNNER = re.compile(
    r"(?i):(?=:(?:set-output|set-env|add-path|add-mask|save-state|debug|notice|warning|error|group|endgroup|echo"
    r"|stop-commands|add-matcher|remove-matcher)\b)|(?<=#)#(?=[a-z]*\[)"
)
"""What a CI runner takes for a command: ``::set-output name=x::``, ``##[error]``, ``##vso[…]``."""
_OWN_MARK = re.compile(r"(?i)<!(?=--\s*hubextrap)")
"""How the marks begin by which a card's parts are found again."""


class OwnLines(str):
    """Lines of ours: its line ends are meant, and the lines themselves hold none of anybody else's."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


def own_lines(*lines: str) -> OwnLines:
    """Several lines, each shown as one, but for those that are lines of ours already."""
    return OwnLines("\n".join(map(as_shown, lines)))


def as_shown(text: str) -> str:
    """A line for the terminal; several where they are ours, as those of an error."""
    lines = redact(text).split("\n") if isinstance(text, OwnLines) else [redact(text)]
    return "\n".join(map(_line, lines))


def terminal_line(text: str) -> str:
    """``text`` as one line of a terminal, or a cell of a table there."""
    return _line(redact(text))


def _line(text: str) -> str:
    text = _cut(text, LONGEST)
    if not (text.isascii() and text.isprintable()):
        text = _ACTING.sub(_shown, text)
    return _cut(_RUNNER.sub(_shown, text), LONGEST)


def terminal_output(text: str) -> str:
    """What a program or a model writes, as it comes; tabs, line ends and returns stay. It is not redacted."""
    return _RUNNER.sub(_shown, _ACTING.sub(_shown_but("\t\n\r"), text))


def json_text(text: str) -> str:
    """JSON text of `redacted` values for a terminal, with what would act there in JSON's own escapes."""
    return _RUNNER.sub(_json_escape, _ACTING.sub(_json_escape, text))


def runner_command(name: str, message: str, **properties: object) -> str:
    """A command of ours for the runner of GitHub Actions: ``::error file=x,line=3::message``, as one line.

    Whatever the texts hold, it ends neither the command nor a property: the runner decodes them once it has
    read both.
    """
    known = {key: as_shown(str(value)) for key, value in properties.items() if value is not None}
    said = ",".join(f"{key}={_percent(value, ':,')}" for key, value in known.items())
    return f"::{name}{' ' * bool(said)}{said}::{_percent(as_shown(message))}"


def _percent(text: str, also: str = "") -> str:
    return re.sub(f"[%\r\n{also}]", lambda found: f"%{ord(found[0]):02X}", text)


def log_text(text: str) -> str:
    """A log record's message: further lines are set in, so that none looks like a record."""
    lines = [_ACTING.sub(_shown, line) for line in redact(text).split("\n")]
    return "\n".join([lines[0], *(line if line[:1].isspace() else f"  {line}" for line in lines[1:])])


def markdown_text(text: str) -> str:
    """``text`` in a sentence, a heading or a cell of a Markdown table: letters, and no markup."""
    shown = terminal_line(" ".join(text.split()))
    if shown.isalnum():
        return shown
    shown = re.sub(r"&(?=#?\w{1,40};)", "&amp;", shown).replace("<", "&lt;")
    shown = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)", "&#92;", shown)
    shown = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", shown)
    shown = re.sub(r"[|`*~$\[\]]", r"\\\g<0>", shown)
    shown = re.sub(r"(?i)(?<=[a-z]):(?=//)|(?<=\bwww)\.", lambda match: f"&#{ord(match[0])};", shown)
    shown = re.sub(r"(?<![\w.+-])@(?=\w)", "&#64;", shown)
    return re.sub(r"\A(?:(\d{1,9})([.)])(?=\s|\Z)|([-+](?=\s|\Z)|-(?=-)|[>=#]))", _not_first, shown)


def markdown_code(text: str) -> str:
    """``text`` as inline code, also in a cell of a table."""
    shown = _unmarked(terminal_line(" ".join(text.split())))
    shown = re.sub(r"\\+(?=\|)", lambda match: r"\x5c" * len(match[0]), shown).replace("|", "\\|")
    ticks = _ticks(shown)
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"{ticks}{shown}{ticks}" if shown else "` `"


def markdown_block(text: str, language: str) -> str:
    """Several lines in a fenced block that none of them can close."""
    shown = _unmarked("\n".join(_ACTING.sub(_shown_but("\t"), line) for line in redact(text).split("\n")))
    fence = _ticks(shown, at_least=3)
    return f"{fence}{language}\n{shown}\n{fence}"


def html_text(text: str) -> str:
    """``text`` in an HTML element or a quoted attribute."""
    from html import escape  # a millisecond, for reports alone

    return escape(terminal_line(text))


def plot_text(text: str) -> str:
    """``text`` in a plot of matplotlib's: no formula, and no label that a legend leaves out."""
    shown = _cut(terminal_line(text), 60).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def log_record(*given: Any, **named: Any) -> logging.LogRecord:
    """A log record, as logging makes it, that is clean: see `clean_record`."""
    return clean_record(_made_record(*given, **named))


def clean_record(record: logging.LogRecord) -> logging.LogRecord:
    """The record with a message and a traceback that are fit to be shown, whichever library logs it."""
    try:
        said = record.getMessage()
    except Exception:  # logging itself tells of it, where the record is handled
        return record
    if (shown := log_text(said)) != said:
        record.msg, record.args = shown, ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = log_text(logging.Formatter().formatException(record.exc_info))
    if record.stack_info:
        record.stack_info = log_text(record.stack_info)
    return record


_made_record = logging.getLogRecordFactory()


def _shown(found: re.Match[str]) -> str:
    character = found[0]
    if found.re is _ACTING and found[1]:
        return character
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shown_but(kept: str) -> Callable[[re.Match[str]], str]:
    return lambda found: found[0] if found[0] in kept else _shown(found)


def redacted(value: Any) -> Any:
    """JSON values with every text in them redacted."""
    known = known_secrets()  # once, for there may be a text for each tensor

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return redact(value, known)
        if isinstance(value, (list, tuple)):
            return [clean(each) for each in value]
        if isinstance(value, dict):
            return {clean(key): clean(each) for key, each in value.items()}
        return value

    return clean(value)


def _json_escape(found: re.Match[str]) -> str:
    if found.re is _ACTING and (found[1] or found[0] in _NAMED):
        return found[0]
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


def _cut(text: str, longest: int) -> str:
    """``text`` without its middle where it is longer: what was cut once is cut no further."""
    if len(text) <= longest:
        return text
    kept, end = longest - len(_left_out(len(text))), longest // 4
    return text[: kept - end] + _left_out(len(text) - kept) + text[-end:]


def _left_out(count: int) -> str:
    return f" … ({count:,} characters) … "


def _not_first(found: re.Match[str]) -> str:
    return f"{found[1]}\\{found[2]}" if found[1] else f"\\{found[3]}"


def _unmarked(text: str) -> str:
    return _OWN_MARK.sub(r"<\\x21", text)


def _ticks(text: str, at_least: int = 1) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(longest + 1, at_least)
