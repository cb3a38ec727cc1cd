"""What a job is told of a command that fails: first on its page (``--summary``), and as annotations.

GitHub Actions shows an annotation beside the line of the file that it names. The runner reads commands from
stdout and stderr alike; they go to stderr, so that stdout is the result and nothing else.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap.errors import HubExtrapError, OutputError, PredictionWorse
from hubextrap.foreign_text import runner_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PAGE: list[Path] = []
"""The job's page; the last one counts, as of any option."""
_MOST = 10
"""Annotations of a kind that GitHub shows for a step."""


def tell_job(message: str, error: BaseException | None = None) -> None:
    """Say why the command fails, on the job's page and as annotations; it has been printed already.

    Args:
        message: one line, or several of ours.
        error: what it is the message of, if that is known.
    """
    annotate(message, error)
    if _PAGE and not isinstance(error, PredictionWorse):  # whose page begins with the gate
        from hubextrap.cli.markdown import append_summary, failure_markdown

        with suppress(OutputError):  # which may be what is wrong
            append_summary(_PAGE[-1], failure_markdown(message), first=True)


def annotate(message: str, error: BaseException | None = None) -> None:
    """Annotate what is wrong, where GitHub Actions runs the command; one annotation for each problem."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or sys.stderr is None:
        return
    title = "hubextrap: the gate" if isinstance(error, PredictionWorse) else "hubextrap"
    known = list(_parts(error)) if isinstance(error, HubExtrapError) else []
    for said, file, line in known[:_MOST] or [(message, None, None)]:
        at = _in_checkout(file)
        command = runner_command("error", said, file=at, line=None if at is None else line, title=title)
        with suppress(OSError, ValueError):  # nobody listens
            type(sys.stderr).write(sys.stderr, f"{command}\n")  # past the guard, which would show it only
            sys.stderr.flush()


def _parts(error: HubExtrapError) -> Iterator[tuple[str, str | None, int | None]]:
    if not error.parts:
        yield str(error), error.file, error.line
    for part in error.parts:
        yield from _parts(part)


def _in_checkout(file: str | None) -> str | None:
    """A file by its path in the repository, which annotations go by; None where it is no file of that."""
    if file is None or not os.path.isfile(file):  # noqa: PTH113 - it may be the name of anything
        return None
    root = Path(os.environ.get("GITHUB_WORKSPACE") or ".").resolve()
    path = Path(file).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


def find_page(words: Sequence[str], takes_summary: Callable[[str], bool]) -> None:
    """Note what --summary names, on a command line that need not be right.

    Args:
        takes_summary: whether the command of a name has that option.
    """
    _PAGE.clear()
    verb = next((word for word in words if not word.startswith("-")), "")
    if not takes_summary(verb):
        return
    for place, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--summary="):
            _PAGE.append(Path(word.partition("=")[2]))
        elif word == "--summary":
            _PAGE.extend(map(Path, words[place + 1 : place + 2]))
