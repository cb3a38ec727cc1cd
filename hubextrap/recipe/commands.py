"""Commands in a recipe: templates with ``{placeholders}``, filled in without a shell unless one is asked for.

``{word}`` is a placeholder and ``{{word}}`` is the text ``{word}``; all other braces stand for themselves.
A value that is filled in always stays one argument, whatever is in it.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from hubextrap.methods import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_SHELL_WORDS = ("&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1", "2>", "&>")
_WITNESS = "a b"


def _is_command(value: object) -> str | tuple[str, ...]:
    parts = value if isinstance(value, (list, tuple)) else (value,)
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError("must be a command: text, or a list of arguments, each of them text")
    return value if isinstance(value, str) else tuple(parts)


Command = Annotated[str | tuple[str, ...], BeforeValidator(_is_command)]
"""Text, cut into arguments at its blanks as a shell does, or the list of arguments."""


def placeholders(template: str) -> list[str]:
    """The names in braces, in order."""
    return [match[2] for match in _PLACEHOLDER.finditer(template) if match[2]]


def filled(template: str, values: Mapping[str, object]) -> str:
    """``template`` with every placeholder replaced by its value."""
    return _PLACEHOLDER.sub(lambda match: str(values[match[2]]) if match[2] else f"{{{match[1]}}}", template)


def check_placeholders(text: str, known: Collection[str], required: Collection[str] = ()) -> None:
    """Refuse a placeholder that nothing stands behind, and a template that lacks one it needs.

    Raises:
        ValueError: says which.
    """
    for name in placeholders(text):
        if name not in known:
            shown = ", ".join(f"{{{one}}}" for one in known)
            raise ValueError(
                f"unknown placeholder {{{name}}}{nearest(name, list(known))}; known here: {shown}; for the "
                f"text itself write {{{{{name}}}}}"
            )
    for name in required:
        if name not in placeholders(text):
            raise ValueError(f"lacks {{{name}}}, which the command needs")


def check_command(
    command: str | tuple[str, ...], shell: bool, known: Collection[str], required: Collection[str]
) -> None:
    """Refuse a command that cannot be run, or that would not do what it looks like.

    Raises:
        ValueError: a placeholder is unknown, missing or in a shell's quotes; quotes do not end; shell syntax
            without a shell; a list with one.
    """
    check_placeholders(command if isinstance(command, str) else " ".join(command), known, required)
    if not isinstance(command, str):
        if shell:
            raise ValueError("with shell: true a command is text, not a list of arguments")
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"its quotes do not match: {error}") from error
    if not shell:
        if syntax := [word for word in words if word in _SHELL_WORDS]:
            raise ValueError(
                f"{syntax[0]} needs a shell, but the command runs without one; set shell: true, or "
                "put the commands into a script"
            )
        return
    for name in dict.fromkeys(placeholders(command)):
        # A value is put in with quotes of its own, which quotes around the placeholder would undo.
        tried = _PLACEHOLDER.sub(
            lambda match, name=name: shlex.quote(_WITNESS) if match[2] == name else "x",  # type: ignore[misc]
            command,
        )
        try:
            words = shlex.split(tried)
        except ValueError:
            words = []
        found = sum(word.count(_WITNESS) - word.count(shlex.quote(_WITNESS)) for word in words)
        if found != placeholders(command).count(name):
            raise ValueError(f"{{{name}}} stands in quotes; leave them out, values are quoted already")


def command_line(
    command: str | tuple[str, ...], shell: bool, values: Mapping[str, object]
) -> tuple[str, ...]:
    """The arguments to start a checked command with."""
    if shell:
        assert isinstance(command, str)
        return ("/bin/sh", "-c", filled(command, {k: shlex.quote(str(v)) for k, v in values.items()}))
    parts = shlex.split(command) if isinstance(command, str) else command
    return tuple(filled(part, values) for part in parts)
