"""The section of the page that says how earlier predictions of a watched run turned out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.foreign_text import html_text
from hubextrap.statistics.hindsight import EXPLAINED, HEADINGS, hindsight_cells, hindsight_notes

if TYPE_CHECKING:
    from hubextrap.statistics.hindsight import Hindsight


def hindsight_html(hindsight: Hindsight) -> str:
    """The section."""
    head = "".join(f'<th scope="col">{html_text(heading)}</th>' for heading in HEADINGS)
    body = ""
    for row in hindsight.rows:
        first, *others = hindsight_cells(row)
        cells = "".join(f"<td>{html_text(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{html_text(first)}</th>{cells}</tr>'
    notes = "".join(f'<p class="soft">{html_text(note)}</p>' for note in hindsight_notes(hindsight))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"""<section id="hindsight" aria-labelledby="hindsight-heading">
<h2 id="hindsight-heading">In hindsight: how predictions turned out</h2>
<p>{html_text(hindsight.line)}.</p>
<div class="table" tabindex="0">{table}</div>
{notes}<p class="soft">{html_text(EXPLAINED)}</p>
</section>
"""
