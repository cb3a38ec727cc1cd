"""The page: one HTML file that opens offline and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.foreign_text import html_text
from hubextrap.hub.provenance import without_private_parts
from hubextrap.reporting.style import to_svg

if TYPE_CHECKING:
    from hubextrap.reporting.sections import Section
    from hubextrap.scans.scan import Scan
    from hubextrap.statistics import RunVerdict


def render_page(title: str, scan: Scan, verdict: RunVerdict, sections: Sequence[Section]) -> str:
    """The whole page as text; the same input gives the same bytes."""
    style = files("hubextrap.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{section.name}">{html_text(section.title)}</a></li>' for section in sections
    )
    headline = _breakable(without_private_parts(verdict.headline))
    # a page is passed on, so it says nothing of this machine's folders
    read_from = [
        (str(read.step), read.name if read.repo else Path(read.name).name, read.dtype)
        for read in scan.checkpoints
    ]
    checkpoints = _table(("step", "checkpoint", "dtype"), read_from)
    said = map(without_private_parts, verdict.sentences)
    sentences = "".join(f"<p>{html_text(sentence)}</p>" for sentence in said)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{html_text(title)}: trajectory report</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{html_text(title)}</h1>
<p>{html_text(_about(scan))}</p>
</header>
<main>
<section class="verdict {verdict.level}" id="verdict">
<h2><span aria-hidden="true">{verdict.mark}</span> {headline}</h2>
{sentences}
</section>
<nav aria-label="Plots"><ul>{links}</ul></nav>
<div class="sections">
{"".join(_section(section) for section in sections)}</div>
</main>
<footer>
<details><summary>The checkpoints that were read</summary>{checkpoints}</details>
<p>Made by hubextrap {html_text(__version__)} from a saved scan; nothing here was loaded from the network.</p>
</footer>
</body>
</html>
"""


def _about(scan: Scan) -> str:
    elements = int(scan.gram_table.elements.sum())
    dtypes = ", ".join(dict.fromkeys(scan.dtypes))
    return (
        f"{len(scan.steps)} checkpoints from step {scan.steps[0]} to {scan.steps[-1]}, {elements:,} weights "
        f"in {len(scan.tensors)} tensors, {dtypes}"
    )


def _section(section: Section) -> str:
    drawn = to_svg(section.draw, section.height, section.name)
    note = f"<p>{html_text(section.note)}</p>" if section.note else ""
    return f"""<section id="{section.name}">
<h2>{html_text(section.title)}</h2>
<p>{html_text(section.shows)}</p>
<p class="worry">{html_text(section.worry)}</p>
<figure role="img" aria-label="{html_text(section.shows)}">{drawn}</figure>
<details><summary>The figures</summary>{note}{_table(section.headings, section.rows)}</details>
</section>
"""


def _table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{html_text(heading)}</th>' for heading in headings)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{html_text(cell)}</td>" for cell in row[1:])
        body += f'<tr><th scope="row">{_breakable(row[0])}</th>{cells}</tr>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="table" tabindex="0">{table}</div>'


def _breakable(text: str) -> str:
    """Names of methods with their parameters are longer than a column is wide."""
    return html_text(text).replace("(", "(<wbr>")
