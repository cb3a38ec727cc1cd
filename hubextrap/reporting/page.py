"""The page: one HTML file that opens offline and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hubextrap._version import __version__
from hubextrap.figures import said_of_sample
from hubextrap.foreign_text import html_text, redacted
from hubextrap.hub.provenance import without_private_parts
from hubextrap.reporting.hindsight import hindsight_html
from hubextrap.reporting.live import live_data, small_table
from hubextrap.reporting.margins import NOTE, standard_errors
from hubextrap.reporting.sections import MAX_ACCURACY_PLOTS, Section, build_sections
from hubextrap.reporting.style import to_svg

if TYPE_CHECKING:
    from hubextrap.clocks import Clock, ClockChoice
    from hubextrap.reporting.accuracy import Accuracy
    from hubextrap.reporting.live import SmallTable, StandardErrors
    from hubextrap.scans.scan import Scan
    from hubextrap.statistics import Backtest, RunVerdict
    from hubextrap.statistics.hindsight import Hindsight

LARGEST = 2_000_000
"""Bytes of a page; the Gram table takes what is left."""
SCRIPTS = ("vendor/charts.min.js", "predicting.js", "expecting.js", "page.js")
SAMPLED_SCRIPTS = (*SCRIPTS[:-1], "sampled.js", SCRIPTS[-1])
"""Those of a page on a sample of the weights."""
_OF_A_SAMPLE = "// of a sample"
"""What a line of a script ends in that no page on all weights has."""
_SAID_AT_ONCE = 2
"""Sentences of the verdict that are not folded."""
_MARGIN_KEY = '<li><b style="color:#0072B2;opacity:.35">▇</b> ± one standard error of the sample</li>\n'


@dataclass(frozen=True)
class Page:
    """All that is on it."""

    title: str
    scan: Scan
    backtest: Backtest
    verdict: RunVerdict
    accuracies: Sequence[Accuracy]
    clocks: Sequence[tuple[Clock, ClockChoice | None]]
    """The one to begin with first, each with what a recipe says to have it."""
    tasks: Sequence[str] = ()
    score_notes: Sequence[str] = ()
    """What has to be known beside the scores, as sentences."""
    hindsight: Hindsight | None = None
    """How earlier predictions turned out, of a run that is watched."""

    @cached_property
    def sections(self) -> list[Section]:
        """The panels for experts."""
        return build_sections(self.scan, self.backtest, self.accuracies)

    def render(self) -> str:
        """The whole page as text; the same input gives the same bytes."""
        sampled = self.scan.weights is not None
        scripts = [_script(name, sampled=sampled) for name in (SAMPLED_SCRIPTS if sampled else SCRIPTS)]
        said = [_about(self.scan), *said_of_sample(self.scan.sampled if sampled else None)]
        about = "\n".join(f"<p>{html_text(line)}</p>" for line in said)
        style = _own_file("page.css")
        hashes = " ".join(map(_hash, scripts))
        policy = (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; "
            "form-action 'none'"
        )
        before = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{html_text(self.title)}: trajectory report</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{html_text(self.title)}</h1>
{about}
</header>
<main>
{self._verdict()}
{self._what_if()}
{self._in_hindsight()}{self._experts()}
</main>
{_footer(self.scan)}
"""
        run = "".join(f"<script>{script}</script>\n" for script in scripts)
        after = f"{run}</body>\n</html>\n"
        room = LARGEST - len(before.encode()) - len(after.encode())
        return f'{before}<script type="application/json" id="data">{self._data(room)}</script>\n{after}'

    def _data(self, room: int) -> str:
        """What the scripts compute with, in so many bytes."""
        empty = self._packed(small_table(self.scan.gram_table, 0))
        # what the smallest table leaves, in which the text around it is counted
        return self._packed(small_table(self.scan.gram_table, room - len(empty) - 1000))

    def _packed(self, small: SmallTable) -> str:
        shown = self.accuracies[:MAX_ACCURACY_PLOTS]
        if self._stderrs is not None:
            small = replace(small, notes=(*small.notes, NOTE))
        known = (self.scan, small, self.clocks, self.backtest, shown, self.verdict, self.tasks)
        data = live_data(*known, self._stderrs)
        # ASCII, and nothing in it can end the element that it stands in
        return json.dumps(redacted(data), separators=(",", ":")).replace("<", "\\u003c")

    @cached_property
    def _stderrs(self) -> dict[str, list[list[StandardErrors]]] | None:
        """What the script cannot work out; None where all weights were read."""
        if self.scan.weights is None:
            return None
        return standard_errors(self.scan, [clock for clock, _ in self.clocks], self.backtest)

    def _verdict(self) -> str:
        verdict = self.verdict
        headline = html_text(without_private_parts(verdict.headline))
        said = [f"<p>{html_text(without_private_parts(sentence))}</p>" for sentence in verdict.sentences]
        first, others = said[:_SAID_AT_ONCE], said[_SAID_AT_ONCE:]
        folded = (
            f"<details><summary>What this rests on</summary>{''.join(others)}</details>" if others else ""
        )
        return f"""<section class="verdict {verdict.level}" id="verdict" aria-labelledby="headline">
<h2 id="headline"><span aria-hidden="true">{verdict.mark}</span> {headline}</h2>
{"".join(first)}
{folded}
</section>"""

    def _what_if(self) -> str:
        clock = ""
        if len(self.clocks) > 1:
            clock = '<div><label for="clock">Time counted by</label><select id="clock"></select></div>'
        scores = "".join(
            f'<p class="chart-title">Scores: {html_text(accuracy.title)}</p>\n'
            f'<figure class="live scores" id="scores-{number}" role="img" aria-label="Scores"></figure>\n'
            for number, accuracy in enumerate(self.accuracies[:MAX_ACCURACY_PLOTS])
        )
        score_key = (
            '<ul class="key"><li><b style="color:#0072B2">●</b> observed, with its 95% interval</li>'
            '<li><b style="color:#D55E00">◇</b> a prediction</li></ul>'
            if scores
            else ""
        )
        notes = "".join(f'<p class="soft">{html_text(note)}</p>' for note in self.score_notes)
        margin_key = "" if self.scan.weights is None else _MARGIN_KEY
        return _own_file("what_if.html").format(
            clock=clock, scores=scores + score_key + notes, margin_key=margin_key
        )

    def _in_hindsight(self) -> str:
        return "" if self.hindsight is None or not self.hindsight.rows else hindsight_html(self.hindsight)

    def _experts(self) -> str:
        if not self.sections:
            return ""
        panels = "".join(map(_panel, self.sections))
        return (
            '<div class="for-experts"><h2>For experts: how the weights move</h2>\n'
            f'<div class="experts">\n{panels}</div></div>'
        )


def _own_file(name: str) -> str:
    return files("hubextrap.reporting").joinpath(*name.split("/")).read_text(encoding="utf-8")


def _script(name: str, *, sampled: bool) -> str:
    lines = _own_file(name).splitlines(keepends=True)
    return "".join(line for line in lines if sampled or not line.rstrip().endswith(_OF_A_SAMPLE))


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _about(scan: Scan) -> str:
    elements = int(scan.gram_table.elements.sum())
    dtypes = ", ".join(dict.fromkeys(scan.dtypes))
    return (
        f"{len(scan.steps)} checkpoints from step {scan.steps[0]} to {scan.steps[-1]}, {elements:,} weights "
        f"in {len(scan.tensors)} tensors, {dtypes}"
    )


def _footer(scan: Scan) -> str:
    # a page is passed on, so it says nothing of this machine's folders
    read_from = [
        (str(read.step), read.name if read.repo else Path(read.name).name, read.dtype)
        for read in scan.checkpoints
    ]
    checkpoints = _table(("step", "checkpoint", "dtype"), read_from)
    return f"""<footer>
<details><summary>The checkpoints that were read</summary>{checkpoints}</details>
<p>Made by hubextrap {html_text(__version__)}. The page loads nothing from the network. Its charts are drawn
by Observable Plot and D3 (ISC licence, in the source of this page).</p>
</footer>"""


def _panel(section: Section) -> str:
    drawn = to_svg(section.draw, section.height, section.name)
    note = f"<p>{html_text(section.note)}</p>" if section.note else ""
    return f"""<section id="{section.name}"><details>
<summary><h3>{html_text(section.title)}</h3></summary>
<p>{html_text(section.shows)}</p>
<p class="worry">{html_text(section.worry)}</p>
<figure role="img" aria-label="{html_text(section.shows)}">{drawn}</figure>
<details><summary>The figures</summary>{note}{_table(section.headings, section.rows)}</details>
</details></section>
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
    return re.sub(r"(?<=\w)\(", "(<wbr>", html_text(text))
