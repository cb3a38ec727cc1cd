"""Measure the tables in pages of docs/ again, and write them there.

    python docs/build_tables.py                          # those of the runs under demo/data: two minutes
    HUBEXTRAP_DATA=FOLDER python docs/build_tables.py    # those of the full runs in FOLDER too: ten minutes
    python docs/build_tables.py long clocks              # only these

A page holds a table between two marks that name it; everything else of the page is left as it is.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small

import adapter_tables
import clock_tables
import long_answers
import sample_tables
import torch
import walk_tables
from adapter_tables import MeasuredAdapters
from measured_run import MeasuredRun

DOCS = Path(__file__).resolve().parent
BUNDLED = DOCS.parent / "demo" / "data"


class Block(NamedTuple):
    """The tables between one pair of marks."""

    page: str
    runs: tuple[str, ...]
    full: bool
    """Whether the runs are those of HUBEXTRAP_DATA."""
    build: Callable[[list[MeasuredRun]], str]


def _clocks(runs: list[MeasuredRun]) -> str:
    return clock_tables.tables(runs[0])


def _adapters(runs: list[MeasuredRun]) -> str:
    (run,) = runs
    assert isinstance(run, MeasuredAdapters)
    return adapter_tables.tables(run)


def _walk(runs: list[MeasuredRun]) -> str:
    found = [walk for run in runs for walk in walk_tables.walks(run)]
    return "\n\n".join([walk_tables.rule_table(found), walk_tables.origin_table(found)])


def _signs(runs: list[MeasuredRun]) -> str:
    found = [sign for run in runs for sign in walk_tables.signs(run)]
    return "\n\n".join([walk_tables.sign_table(found), walk_tables.fall_table(found)])


def _bundled(runs: list[MeasuredRun]) -> str:
    return walk_tables.origin_table(walk_tables.walks(runs[0], origins=(100, 200)))


def _long(runs: list[MeasuredRun]) -> str:
    found = long_answers.walks(runs[0])
    return "\n\n".join([long_answers.rule_table(found), long_answers.curve_table(found)])


def _sample(runs: list[MeasuredRun]) -> str:
    return sample_tables.tables(runs)


BLOCKS = {
    "clocks": Block("clocks.md", ("E2",), True, _clocks),
    "walk": Block("walk.md", ("A", "C", "E2"), True, _walk),
    "signs": Block("walk.md", ("A", "C", "E2"), True, _signs),
    "bundled": Block("walk.md", ("C",), False, _bundled),
    "long": Block("walk.md", ("L",), False, _long),
    "sample": Block("sampling.md", ("A", "C", "E2", "F"), True, _sample),
    "adapters": Block("adapters.md", ("F",), True, _adapters),
}


def main(names: list[str]) -> None:
    if unknown := sorted(set(names) - set(BLOCKS)):
        sys.exit(f"no such tables: {', '.join(unknown)}; there are {', '.join(BLOCKS)}")
    torch.set_num_threads(1)
    for name in names or BLOCKS:
        block = BLOCKS[name]
        if (folder := folder_of(block)) is None:
            print(f"{name}: left as they are: HUBEXTRAP_DATA does not name the folder of the full runs")
            continue
        insert(
            DOCS / block.page,
            name,
            block.build([run(folder / f"rlvr-{run_name}") for run_name in block.runs]),
        )
        print(f"{name}: written into {block.page}", flush=True)


def folder_of(block: Block) -> Path | None:
    """Where its runs lie; None where they are not at hand."""
    if not block.full:
        return BUNDLED
    given = os.environ.get("HUBEXTRAP_DATA")
    return Path(given) if given else None


@cache
def run(folder: Path) -> MeasuredRun:
    """One of adapters where its base is there too."""
    return (MeasuredAdapters if (folder / "base").is_dir() else MeasuredRun)(folder)


def marks(name: str) -> tuple[str, str]:
    return f"<!-- tables: {name}, by docs/build_tables.py -->", f"<!-- end of tables: {name} -->"


def insert(page: Path, name: str, tables: str) -> None:
    """Replace what is between the marks."""
    content = page.read_text(encoding="utf-8")
    kept = between(content, name)
    if kept is None:
        sys.exit(f"{page}: the marks {' and '.join(marks(name))} are not there in this order; restore them")
    begin, end = marks(name)
    page.write_text(content.replace(f"{begin}{kept}{end}", f"{begin}\n{tables}\n{end}"), encoding="utf-8")


def between(content: str, name: str) -> str | None:
    """What a page holds between the marks; None without them."""
    begin, end = map(re.escape, marks(name))
    found = re.search(f"{begin}(.*?){end}", content, re.DOTALL)
    return None if found is None else found[1]


if __name__ == "__main__":
    main(sys.argv[1:])
