"""How results show themselves: one line at Python's prompt, a small table in a notebook.

Whatever others wrote in them is escaped, and long lists are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubextrap.foreign_text import html_text, terminal_line
from hubextrap.lazy import by_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LISTED = 40
"""Rows of a table."""
_LONGEST = 100
"""Characters of a part of a line."""


def one_line(thing: object, *facts: str) -> str:
    """``<Trajectory: 8 checkpoints, steps 0–400>``; facts that are "" are left out."""
    said = ", ".join(terminal_line(_shortened(fact)) for fact in facts if fact)
    return f"<{type(thing).__name__}: {said}>" if said else f"<{type(thing).__name__}>"


def counted(count: int, noun: str) -> str:
    """``1 file``, ``1,200 files``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def and_more(count: int) -> str:
    """`` and 1,199 more`` behind the first of so many; "" where it is the only one."""
    return f" and {count - 1:,} more" if count > 1 else ""


def steps_in_words(steps: Sequence[int]) -> str:
    """``steps 0–400``."""
    if not steps:
        return "no steps"
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]}–{steps[-1]}"


def html_table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[object]], notes: Iterable[str] = ()
) -> str:
    """A table of texts and numbers; the first cell of a row says what it is about."""
    head = "".join(f'<th scope="col">{html_text(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{_cell(first)}</th>'
        + "".join(f"<td>{_cell(one)}</td>" for one in rest)
        + "</tr>"
        for first, *rest in rows[:LISTED]
    )
    said = [*([f"… {len(rows):,} in all"] if len(rows) > LISTED else []), *notes]
    return (
        f"<table><caption>{html_text(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + "".join(f"<p>{html_text(one)}</p>" for one in said)
    )


def shown_by(function: str, thing: Any) -> str:
    """What ``module:function`` makes of it: for results whose figures are found by what stands above them."""
    return str(by_name(function)(thing))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return html_text(f"{value:,}" if isinstance(value, int) else str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:40]}…{text[-(_LONGEST - 41) :]}"
