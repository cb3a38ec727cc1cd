"""What a look at a watched run found: for the terminal, and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubextrap.cli.terminal import console, tell
from hubextrap.foreign_text import markdown_text
from hubextrap.narrow import NarrowTable
from hubextrap.statistics.hindsight import EXPLAINED, HEADINGS, hindsight_cells, hindsight_notes
from hubextrap.statistics.plain_names import plain_name

if TYPE_CHECKING:
    from hubextrap.api import WatchLook
    from hubextrap.watching import Taken


def print_look(reference: str, look: WatchLook) -> None:
    """What was found, what was done, and how earlier predictions turned out."""
    if not look.steps and not look.said:
        tell(f"{reference}: nothing new")
        return
    for line in _told(look):
        tell(line)
    if look.verdict is not None:
        tell(look.verdict.line)
    if look.hindsight is not None and look.hindsight.rows:
        tell("")
        tell(f"In hindsight: {look.hindsight.line}")
        rows = [list(hindsight_cells(row)) for row in look.hindsight.rows]
        console(160).print(NarrowTable(list(HEADINGS), rows, "llrrrrrll"))
        for note in hindsight_notes(look.hindsight):
            tell(note)
    if look.page is not None:
        tell(f"page: {look.page}")


def _told(look: WatchLook) -> list[str]:
    """What became of checkpoints, and what was done."""
    ran = (f"step {one.step}: the command: {one.ended}" for one in look.ran)
    return [*look.said, *map(taken_in_words, look.taken), *ran]


def taken_in_words(taken: Taken) -> str:
    """What was done for a checkpoint, or why nothing."""
    if taken.made is None:
        said = taken.said
        if taken.reason:
            return f"step {taken.step}: nothing was predicted: {taken.reason}"
        if said is None:
            return f"step {taken.step}: passed over, as the recipe says (every)"
        aim = (
            "no later step is supported yet" if said.target_step is None else f"up to step {said.target_step}"
        )
        return f"step {taken.step}: {plain_name(said.method)}, {aim}"
    made = taken.made
    where = f"{made.repo}@{made.revision}" if made.repo else made.folder
    scores = "".join(f"; {one.task}: {one.outcome}" for one in made.scores)
    return f"step {taken.step}: predicted step {made.step}, {where}{scores}"


def hindsight_markdown(reference: str, look: WatchLook) -> str:
    """The same for a page of CI."""
    lines = [f"## {markdown_text(reference)}", ""]
    if look.verdict is not None:
        lines += [f"**{markdown_text(look.verdict.line)}**", ""]
    lines += [f"- {markdown_text(line)}" for line in _told(look)]
    if look.hindsight is not None and look.hindsight.rows:
        lines += ["", "### In hindsight", "", f"{markdown_text(look.hindsight.line)}.", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "| " + " | ".join("---" for _ in HEADINGS) + " |"]
        for row in look.hindsight.rows:
            lines.append("| " + " | ".join(map(markdown_text, hindsight_cells(row))) + " |")
        lines += ["", *(markdown_text(note) for note in hindsight_notes(look.hindsight)), EXPLAINED]
    return "\n".join([*lines, ""])
