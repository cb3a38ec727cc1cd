"""A page on all weights is what it was before pages on a sample were: byte for byte, but for its drawings."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from hubextrap import __version__
from hubextrap.clocks import STEPS
from hubextrap.reporting import Page
from hubextrap.scans import Scan, ScannedCheckpoint
from hubextrap.statistics import GramTable, backtest_table, judge_run, random_walk
from hubextrap.statistics.linearity import BINS

BEFORE = "40a69a4cb16402c51c872131921b15f6df1ccdd493c860ea40a83a5ad256151b"
"""sha256 of the page of `exact` without its SVG drawings, which matplotlib's releases draw differently, as
hubextrap wrote it before it took samples. Who changes the page on purpose writes the new one here."""
KNOWN = (0, 40, 80, 120, 160, 240, 400)


def exact() -> Scan:
    """Of whole numbers, so that its sums are the same everywhere."""
    places = np.arange(1, 41, dtype=np.float64)
    steps = np.array(KNOWN, dtype=np.float64)[:, None]
    tensors = [np.rint(0.1 * steps * (places % bend) + 3 * np.cos(steps * places)) for bend in (3, 5, 7)]
    moves = np.stack(tensors)
    moves -= moves[:, :1]
    names = tuple(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(len(moves)))
    table = GramTable(KNOWN, names, np.full(len(moves), 40), moves @ moves.transpose(0, 2, 1))
    counts = np.zeros((len(moves), BINS + 3), np.int64)
    counts[:, 180:184], counts[:, BINS] = 9, 4
    read = tuple(
        ScannedCheckpoint(step, f"me/run@step_{step}", "me/run", f"step_{step}", "a" * 40, "", "F32", "p")
        for step in KNOWN
    )
    nowhere = np.full((len(moves), 4), -1)
    values = np.full((len(moves), 4, len(KNOWN)), np.nan, np.float32)
    return Scan(table, "me/run", read, counts, random_walk(KNOWN, 1000), nowhere, values)


def page_of(scan: Scan) -> str:
    found = backtest_table(scan.gram_table)
    return Page("me/run", scan, found, judge_run(found), [], [(STEPS, None)]).render()


def without_drawings(page: str) -> str:
    return re.sub(r"(?s)<svg.*?</svg>", "", page).replace(f"hubextrap {__version__}", "hubextrap")


@pytest.mark.slow
def test_its_bytes() -> None:
    page = without_drawings(page_of(exact()))
    assert sha256(page.encode()).hexdigest() == BEFORE


@pytest.mark.slow
def test_nothing_of_a_sample_is_in_it() -> None:
    page = page_of(replace(exact(), sampled=2048))  # as those of adapters are
    assert "of a sample" not in re.sub(r"estimated from a sample|Estimated from a sample", "", page)
    assert "±" not in page.partition("<script")[0]
    assert "StandardErrors" not in page
    assert "stderrs" not in page
