"""SECURITY.md names tests that are there, and a reader finds it."""

from __future__ import annotations

import re

from harness import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_each_test_that_it_names_is_there() -> None:
    shown = re.sub(r"<!--.*?-->", "", TEXT, flags=re.DOTALL)
    named = set(re.findall(r"`(tests/[\w/.]+)`", shown))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).is_file(), name
        assert "def test_" in (ROOT / name).read_text(encoding="utf-8"), name


def test_each_promise_has_its_test() -> None:
    promised = TEXT.partition("## What is promised")[2].partition("## What is not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and "| shown by |" not in line]
    assert len(rows) > 20
    for row in rows:
        assert "tests/" in row or "<!-- gap:" in row, row
