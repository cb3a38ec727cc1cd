"""A page on a sample of the weights: its figures have standard errors, in Python's parts and the script's."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, Browser
from numpy.typing import NDArray

from hubextrap.clocks import STEPS, RateClock, RateHistory
from hubextrap.figures import with_stderr
from hubextrap.recipe import parse_recipe
from hubextrap.reporting import build_sections, weights
from hubextrap.reporting.margins import standard_errors
from hubextrap.scans import Scan
from hubextrap.statistics import backtest_table, backtest_view, candidates, expect_of_last

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
CANDIDATES = {candidate.name: candidate for candidate in candidates()}
FIGURE = r"\d\.\d\d ± \d\.\d+"


def embedded(page: Path) -> dict[str, Any]:
    _, _, rest = page.read_text().partition('id="data">')
    return dict(json.loads(rest.partition("</script>")[0]))


def test_what_it_says_of_the_sample(sampled_page: Path, sampled_scan: Scan) -> None:
    text = unescape(sampled_page.read_text())
    header = text.partition("<main>")[0]
    assert (
        header.count("All figures are from a sample of 512 weights per tensor; ± is one standard error") == 1
    )
    found = backtest_table(sampled_scan.gram_table)
    for name, figures in backtest_view.rows(found):
        assert all(stderr is not None for _, stderr in figures), name
        cells = "".join(f"<td>{with_stderr(*figure)}</td>" for figure in figures)
        assert f'<th scope="row">{name.replace("(", "(<wbr>")}</th>{cells}' in text
    linearity = sampled_scan.linearity()
    assert linearity.median_stderr is not None
    assert f"The median is {with_stderr(linearity.median, linearity.median_stderr)}, and " in text
    assert "that of a mean is an upper bound" in text


def test_every_figure_of_a_section_has_one(sampled_scan: Scan) -> None:
    """But for those of weights as they are stored, and of random walks."""
    sections = build_sections(sampled_scan, backtest_table(sampled_scan.gram_table), [])
    assert {section.name for section in sections} > {
        "direction",
        "heat-map",
        "r-squared",
        "explained-variance",
    }
    for section in sections:
        if section.name not in ("examples", "log-probabilities", "r-squared"):
            columns = slice(1, 2) if section.name == "explained-variance" else slice(1, None)
            cells = [cell for row in section.rows for cell in row[columns] if cell != "–"]
            assert all("±" in cell for cell in cells), section.name
            assert len(cells) > 6


def by_hand(scan: Scan, figure: Callable[[Scan], Any]) -> NDArray[np.float64]:
    """The jackknife without any linearisation: every group of every tensor is left out by itself."""
    table, squares = scan.gram_table, []
    assert table.sample is not None
    factors = table.sampling_factors
    for group in range(table.sample.blocks.shape[1]):
        left = table.left_out(group).gram
        found = []
        for row in range(len(table.tensors)):
            gram = table.gram.copy()
            gram[row] = left[row]
            found.append(figure(replace(scan, gram_table=replace(table, gram=gram))))
        squares.append(found)
    values = np.array(squares, dtype=np.float64)
    spread = ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(np.tensordot(factors, spread, axes=1)))


def test_the_jackknife_is_that_by_hand(sampled_scan: Scan) -> None:
    found = weights.explained_stderrs(sampled_scan.gram_table)
    assert found == pytest.approx(
        by_hand(sampled_scan, lambda scan: weights.explained(scan.gram_table.gram)), rel=0.02, abs=1e-9
    )
    for rounded in (False, True):
        both = weights.direction_stderrs(sampled_scan, rounded)
        for place in (1, 2):
            hand = by_hand(sampled_scan, lambda scan: weights.direction(scan, rounded)[place])  # noqa: B023
            assert both is not None
            assert both[place - 1] == pytest.approx(hand, rel=0.03)
    norms = sampled_scan.delta_norm_stderrs([3, 4, 9])
    hand = by_hand(sampled_scan, lambda scan: np.sqrt((scan.delta_norms()[[3, 4, 9]] ** 2).sum(axis=0)))
    assert norms == pytest.approx(hand, rel=0.02)


@pytest.mark.slow
def test_the_same_scan_gives_the_same_page(sampled_page: Path, tmp_path: Path) -> None:
    from hubextrap import api

    again = api.report(sampled_page.parent / "run.safetensors", out=tmp_path / "report.html").page
    assert again.read_bytes() == sampled_page.read_bytes()


def test_it_allows_its_own_scripts_alone(sampled_page: Path) -> None:
    text = sampled_page.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    scripts = re.findall(r"(?s)<script>(.*?)</script>", text)
    assert len(scripts) == 5
    hashes = {b64encode(sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(re.findall(r"'sha256-([^']*)'", policy)) == hashes


@pytest.mark.slow
def test_its_standard_errors_are_pythons(sampled_page: Path, sampled_scan: Scan) -> None:
    rows = {
        (row.method, row.last_step, row.target_step): row
        for row in backtest_table(sampled_scan.gram_table).rows
    }
    newest, ahead, behind = sampled_scan.steps[-1], 0, 0
    for method in embedded(sampled_page)["methods"]:
        (found,) = method["stderrs"]
        for origin, step, expected, real in found:
            if origin == newest:
                rules = CANDIDATES[method["name"]].rules
                theirs = expect_of_last(rules, sampled_scan.gram_table, step, False).stderr
                assert expected == pytest.approx(theirs, rel=0.005)
                ahead += 1
            else:
                row = rows[method["name"], origin, step]
                assert real == pytest.approx(row.error_stderr, rel=0.005)
                assert (expected is None) == (row.expected_error_stderr is None)
                assert expected is None or expected == pytest.approx(row.expected_error_stderr, rel=0.005)
                behind += 1
    assert ahead > 60
    assert behind == len([row for row in rows.values() if row.method != "persistence"])


@pytest.mark.slow
@in_chromium
def test_the_script_shows_them(sampled_page: Path, sampled_scan: Scan, browser: Browser) -> None:
    browser.open(sampled_page)
    assert browser.said == []
    assert re.fullmatch(FIGURE, browser.text("error"))
    rules = CANDIDATES["late_lines"].rules
    browser.press("Tab", 2)
    browser.run("document.getElementById('slider').focus()")
    browser.press("End")
    expected = expect_of_last(rules, sampled_scan.gram_table, 1200, False)
    assert browser.text("error") == with_stderr(expected.relative_error, expected.stderr)
    assert "Its standard error is 0.0" in browser.run("document.getElementById('errors').ariaLabel")
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert re.search(FIGURE, browser.text("rows"))
    assert "the one shown lies on the line between theirs" in browser.text("notes")
    browser.choose("origin", 6)
    (row,) = (
        row
        for row in backtest_table(sampled_scan.gram_table).rows
        if (row.method, row.last_step, row.target_step) == ("late_lines", 200, 400)
    )
    assert browser.text("error") == with_stderr(row.expected_error, row.expected_error_stderr)
    assert f"the error found is {with_stderr(row.error, row.error_stderr)}." in browser.text("found")
    assert browser.said == []


@in_chromium
def test_its_recipes_and_commands_read_the_sample(sampled_page: Path, browser: Browser) -> None:
    browser.open(sampled_page)
    for number, method in enumerate(embedded(sampled_page)["methods"]):
        browser.choose("method", number)
        recipe = parse_recipe(browser.text("recipe"))  # which has no fit that would have no effect
        assert recipe.fit_sample == (512 if recipe.needs_scan else None), method["name"]
        assert " --sample 512 --to " in browser.text("commands")
    assert browser.said == []


@in_chromium
def test_between_two_steps_and_what_could_turn(sampled_page: Path, browser: Browser) -> None:
    browser.open(sampled_page)
    asked = """(() => {
      const rows = [[10, 0.1], [20, 0.3], [40, null], [60, 0.2]];
      const between = [5, 10, 15, 20, 40, 90].map((step) => StandardErrors.between(rows, step));
      const level = ({ error }) => (error < 0.5 ? "good" : "care");
      const turns = [[0.46, 0.03], [0.46, 0.01], [0.46, null]].map(([error, stderr]) =>
        StandardErrors.turns({ error, stderr }, level));
      const shown = [null, 0, 0.0001, 0.002, 0.012].map(StandardErrors.shown);
      return { between, turns, shown };
    })()"""
    found = browser.run(asked)
    assert found["between"] == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.25, 0.2])
    assert found["turns"][0].startswith(" The sample could turn this advice")
    assert found["turns"][1:] == ["", ""]
    assert found["shown"] == ["", *(with_stderr(1, one)[4:] for one in (0, 0.0001, 0.002, 0.012))]


@pytest.mark.slow
def test_both_clocks_have_them(sampled_scan: Scan) -> None:
    """On the clock that the backtest did not go by, rehearsals are made anew."""
    logged = tuple(range(2, 401, 2))
    rates = tuple(1e-6 * min(step / 20, (600 - step) / 580) for step in logged)
    clocks = [STEPS, RateClock(RateHistory(logged, rates, max_steps=600))]
    found = standard_errors(sampled_scan, clocks, backtest_table(sampled_scan.gram_table))
    for name, both in found.items():
        steps = [{row[:2] for row in rows if row[0] < 400} for rows in both]
        assert len(steps[0] & steps[1]) > 10, name
        values = [[row[3] for row in rows if row[3] is not None] for rows in both]
        assert (values[0] == values[1]) == (name in ("average", "ema")), name
        assert all(0 <= value < 0.1 for rows in values for value in rows), name
