"""What pages show as output is what the commands print today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_lines import run_main

ROOT = Path(__file__).parents[2]


def shown(page: str, start: str) -> list[str]:
    """The lines of the block that begins so, up to where it is cut short."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(start)]
    lines = block.splitlines()
    return lines[: lines.index("  …")] if "  …" in lines else lines


@pytest.mark.parametrize(("start", "more"), [("✓", []), ("?", ["--max-step", "100"])])
def test_the_page_on_backtest(start: str, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    ended = run_main("backtest", "demo/data/rlvr-C", "-q", *more)
    assert ended.code == 0, ended
    lines = shown("backtest.md", start)
    assert len(lines) > 4
    assert [line.rstrip() for line in ended.out.splitlines()][: len(lines)] == lines
