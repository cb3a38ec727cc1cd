"""The tables that docs/build_tables.py measured: they are in the pages; and, slow, they come out again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("clocks", "walk", "signs", "bundled", "long", "sample", "adapters")
NUMBER = re.compile(r"(?<![\w.])[+−]?(?:\d+\.\d+|\.\d+|\d+)(?!\w)")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return __import__("build_tables")


def rows(content: str) -> list[list[str]]:
    """The cells of the tables, their rules left out."""
    lines = [line.strip("|\n ").split(" | ") for line in content.splitlines() if line.startswith("|")]
    return [line for line in lines if set(line) != {"---"}]


def check_alike(kept: str, found: str, within: float) -> None:
    """The same words, and figures that agree to within so much; whole numbers may be a fifth off."""
    assert NUMBER.sub("#", kept).count("|") == NUMBER.sub("#", found).count("|")
    for old, new in zip(rows(kept), rows(found), strict=True):
        assert old[0] == new[0]
        for one, other in zip(old, new, strict=True):
            figures = [
                [float(figure.replace("−", "-")) for figure in NUMBER.findall(cell)] for cell in (one, other)
            ]
            if len(figures[0]) != len(figures[1]):
                # a share of 0 stands without its worst draw
                figures = [some[:1] for some in figures]
            for a, b in zip(*figures, strict=True):
                allowed = max(1.0, abs(a) / 5) if a == int(a) and abs(a) >= 1 else within
                assert b == pytest.approx(a, abs=allowed), (old, new)


def test_a_figure_that_is_off_is_noticed() -> None:
    kept = "| rule | up to 2× |\n| --- | --- |\n| own | +.037 (.33, −.106) |"
    check_alike(kept, kept.replace(".037", ".038"), within=0.01)
    for off in (kept.replace("+.037", "−.037"), kept.replace(".106", ".206"), kept.replace("own", "any")):
        with pytest.raises(AssertionError):
            check_alike(kept, off, within=0.01)


def test_every_table_has_its_place(tables: Any) -> None:
    assert tuple(tables.BLOCKS) == NAMES
    for name, block in tables.BLOCKS.items():
        kept = tables.between((ROOT / "docs" / block.page).read_text(), name)
        assert kept is not None, name
        assert len(rows(kept)) > 2, name


def test_the_page_says_which_predictions_of_adapters_there_are(tables: Any) -> None:
    found = tables.adapter_tables
    (first, second, *_, last), (near, far) = found.LASTS, found.AHEAD
    page = (ROOT / "docs" / "adapters.md").read_text()
    assert f"\n{len(found.PAIRS)} predictions, {near} and {far} steps ahead from each of" in page
    assert f" {first}, {second}, …, {last}. " in page


def test_only_what_is_between_the_marks_is_replaced(tables: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = tables.marks("long")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for made in ("| \\1 |", "| new |"):
        tables.insert(page, "long", made)
        assert page.read_text() == f"before\n{begin}\n{made}\n{end}\nafter\n"
    with pytest.raises(SystemExit, match=r"the marks .* restore them"):
        tables.insert(page, "walk", "new")
    assert page.read_text() == f"before\n{begin}\n| new |\n{end}\nafter\n"


def test_a_name_that_is_none_is_refused(tables: Any) -> None:
    with pytest.raises(SystemExit, match="no such tables: lng; there are clocks, walk"):
        tables.main(["lng"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("long", "sample")])
def test_the_tables_come_out_again(tables: Any, name: str) -> None:
    block = tables.BLOCKS[name]
    if block.full and not os.environ.get("HUBEXTRAP_DATA"):
        pytest.skip("set HUBEXTRAP_DATA to the folder of the full runs")
    found = block.build([tables.run(tables.folder_of(block) / f"rlvr-{run}") for run in block.runs])
    kept = tables.between((ROOT / "docs" / block.page).read_text(), name)
    check_alike(kept, found, within=0.01)


@pytest.mark.slow
def test_the_rows_of_one_sample_come_out_again(
    tables: Any, rlvr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tables.sample_tables
    monkeypatch.setattr(found, "BLOCK_OF_SIZE", {4096: 1024})
    made = found.size_table([tables.run(rlvr / "rlvr-A")])
    kept = rows(tables.between((ROOT / "docs" / "sampling.md").read_text(), "sample"))
    (row,) = (row for row in kept if row[:2] == ["A", "4,096"])
    new = rows(made)[1]
    check_alike(f"| {' | '.join(row)} |", f"| {' | '.join(new)} |", within=0.0005)


@pytest.mark.slow
def test_one_walk_on_long_answers_comes_out_again(tables: Any) -> None:
    """With fewer samples: accuracies agree within their noise, log-probabilities closely."""
    import long_answers

    run = tables.run(tables.BUNDLED / "rlvr-L")
    found = long_answers.walk(run, run.steps[-1] // 2, samples=4)
    kept = rows(tables.between((ROOT / "docs" / "walk.md").read_text(), "long"))
    of_origin = [row for row in kept if row[0] == str(found.last) and "±" in row[2]]
    assert len(of_origin) == len(found.points) > 4
    for row, point in zip(of_origin, found.points, strict=True):
        assert int(row[1]) == pytest.approx(found.last * (1 + point.horizon), abs=1)
        assert float(row[2].split(" ")[0]) == pytest.approx(point.accuracy.mean(), abs=0.06)
        seen = [float(cell.replace("−", "-")) for cell in row[3:]]
        assert seen == pytest.approx(list(point.seen.values()), abs=0.05)
