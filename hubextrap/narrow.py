"""Lines and tables for terminals of any width: no word is broken, a long name in a table loses its middle."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from hubextrap.foreign_text import terminal_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions
    from rich.table import Table

LONG_NAME = 24
"""Characters that are left of a long name, before other cells are cut between words."""
NARROWEST = 8
"""Characters that are left of a long name at least."""


_COMMAND = re.compile(r"`[^`]*`")
"""What is to be copied stays on one line, where it fits."""
_LOOP = re.compile(r" *for step in [^\n]*; done")
"""What is to be pasted stays on one line, however long: a shell reads no loop that is cut anywhere."""
_SPACE = "\ue000"
"""Stands for a space in it: a character of private use."""
_LABEL = re.compile(r" *[^ ]+ {2,}| +")
"""What a line begins with, if its text is set in."""


def columns(stream: TextIO | None) -> int | None:
    """How wide to write there: as the terminal is, or as COLUMNS says; None: as wide as a line is.

    Errors and progress that go into a file are never cut: programs look for lines there, and whoever starts
    them may have COLUMNS from the terminal that it was started from itself.
    """
    said = os.environ.get("COLUMNS", "")
    if stream is sys.stderr and (stream is None or not stream.isatty()):
        return None
    if said.isdecimal() and int(said[:9]) > 0:
        return int(said[:9])
    if stream is None or not stream.isatty():
        return None
    return shutil.get_terminal_size().columns


def fitted(text: str, stream: TextIO | None) -> str:
    """Lines as they are printed there: cut between words, and set in as far as their text is."""
    width = columns(stream)
    if width is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _parts(line, width))


def _parts(line: str, width: int) -> list[str]:
    if len(line) <= width or _LOOP.fullmatch(line):
        return [line]
    label = _LABEL.match(line)
    indent = min(len(label[0]) if label else 2, width // 4)
    if indent + max(map(len, line.split()), default=0) > width:
        indent = 0  # a path, which is read best in one piece

    def whole(command: re.Match[str]) -> str:
        return command[0].replace(" ", _SPACE) if len(command[0]) <= width - indent else command[0]

    parts = textwrap.wrap(
        _COMMAND.sub(whole, line),
        width,
        subsequent_indent="# " if line.startswith("# ") else " " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return [part.replace(_SPACE, " ") for part in parts]


@dataclass(frozen=True)
class NarrowTable:
    """A renderable of Rich's, fitted to the width that it is printed at."""

    header: Sequence[str]
    """A title may have several lines."""
    rows: Sequence[Sequence[str]]
    sides: str
    """An ``l`` or an ``r`` for each column."""
    lines: bool = False
    """Whether there are lines around the cells, where they leave room for whole words."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        yield self.fitted(options.max_width)

    def fitted(self, width: int) -> Table:
        """As it is drawn in ``width`` columns."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        rows = [
            ["\n".join(map(terminal_line, cell.split("\n"))) for cell in row]
            for row in (self.header, *self.rows)
        ]
        columns = [list(column) for column in zip(*rows, strict=True)]
        inner = len(columns) - 1
        lines = self.lines and sum(_longest(column, None) for column in columns) <= width - 4 - 3 * inner
        between = 3 if lines else 2
        if not lines and sum(_longest(column, "\n") for column in columns) > width - 2 * inner:
            between = 1
        widths = _widths(columns, width - 4 * lines - between * inner)
        table = Table(
            box=box.HEAVY_HEAD if lines else None,
            header_style="bold",
            pad_edge=lines,
            padding=(0, 1) if between > 1 else (0, 1, 0, 0),
        )
        for title, side, space in zip(rows[0], self.sides, widths, strict=True):
            justify = "left" if side == "l" else "right"
            table.add_column(Text(_cut(title, space)), justify=justify, width=space)  # type: ignore[arg-type]
        for row in rows[1:]:
            table.add_row(*(Text(_cut(cell, space)) for cell, space in zip(row, widths, strict=True)))
        return table


def without_middle(text: str, width: int) -> str:
    """``text`` in so many characters."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """What each column gets. Where that is less than its cells need, long names lose their middle first, then
    cells are cut between words, then all names are shortened."""
    widths = [_longest(column, "\n") for column in columns]
    words = [_longest(column, None) for column in columns]
    names = [LONG_NAME if word > LONG_NAME else width for word, width in zip(words, widths, strict=True)]
    for least in (
        names,
        [min(word, LONG_NAME) for word in words],
        [min(word, NARROWEST) for word in words],
    ):
        while sum(widths) > room:
            place = max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))
            if widths[place] <= least[place]:
                break
            widths[place] -= 1
    return widths


def _longest(column: Sequence[str], separator: str | None) -> int:
    return max((len(part) for cell in column for part in cell.split(separator)), default=1)


def _cut(cell: str, width: int) -> str:
    return "\n".join(
        " ".join(without_middle(word, width) for word in line.split(" ")) for line in cell.split("\n")
    )
