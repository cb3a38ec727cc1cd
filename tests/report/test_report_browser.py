"""The page in headless Chromium: it answers, shows all that it draws, and says nothing on the console."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, Browser

from hubextrap import api, parse_recipe
from hubextrap.clocks import RateHistory
from hubextrap.methods import coefficients, registry
from hubextrap.scans import Scan
from hubextrap.statistics import candidates, expect_of_last
from hubextrap.trajectory import find_trajectory

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
DEMO = Path(__file__).parents[2] / "demo" / "data" / "rlvr-C"
PLOTS = [
    "accuracy-1", "backtest", "direction", "r-squared", "heat-map", "log-probabilities", "examples",
    "explained-variance",
]  # fmt: skip
UNFOLD = "for (const one of document.querySelectorAll('details')) one.open = true"
MEASURE = """[...document.querySelectorAll("figure svg")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const boxes = (kind) =>
    [...svg.querySelectorAll(kind)].map((one) => [one.textContent, one.getBoundingClientRect()]);
  const marks = boxes("path, use, rect, line, circle").map(([, mark]) => mark);
  const texts = boxes("text");
  return {
    name: svg.closest("section").id, live: svg.closest("figure").classList.contains("live"),
    width: box.width, height: box.height,
    marks: marks.filter((mark) => mark.width + mark.height > 1).length,
    texts: texts.length,
    cut: texts.filter(([, text]) => text.width && (text.left < box.left - 2 || text.right > box.right + 2
      || text.top < box.top - 2 || text.bottom > box.bottom + 2)).map(([words]) => words),
  };
})"""


def wide(browser: Browser) -> bool:
    return bool(browser.run("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def test_console_is_watched(browser: Browser, tmp_path: Path) -> None:
    """What the tests below rely on."""
    other = tmp_path / "page.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    for content in ('<img src="x.png">', "<script>1</script>"):
        other.write_text(policy + content)
        browser.open(other)
        assert browser.said, content
    other.write_text("<script>console.log('here')</script>")
    browser.open(other)
    assert "here" in browser.said[0]


@pytest.mark.parametrize("width", [1400, 420])
def test_every_plot_drew(page: Path, browser: Browser, width: int) -> None:
    browser.open(page, width)
    assert not wide(browser)
    browser.run(UNFOLD)
    assert not wide(browser), "the page scrolls sideways"
    found: list[dict[str, Any]] = browser.run(MEASURE)
    assert [plot["name"] for plot in found if not plot["live"]] == PLOTS
    assert len([plot for plot in found if plot["live"]]) == 2
    for plot in found:
        assert plot["width"] > 0.75 * min(width, 620), plot
        assert plot["height"] > (0.2 if plot["live"] else 0.5) * plot["width"], plot
        assert plot["marks"] > (8 if plot["live"] else 20), plot
        assert plot["texts"] > 8, plot
        assert plot["cut"] == [], plot
    assert browser.said == []


def test_the_keyboard_changes_answer_recipe_and_chart(page: Path, scan: Scan, browser: Browser) -> None:
    browser.open(page)
    parts = ("target-said", "error", "recipe", "commands")
    before = {part: browser.text(part) for part in parts}
    chart = browser.run("document.getElementById('errors').innerHTML")
    assert before["target-said"] == "step 800"
    assert [browser.text("mark"), browser.text("level")] == ["✓", "Looks promising"]
    browser.run("document.getElementById('target').focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "slider"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("End")
    after = {part: browser.text(part) for part in parts}
    assert after["target-said"] == "step 1200"
    assert browser.text("level") == "With care"
    assert "farther than the past trusts" in browser.text("reason")
    assert not set(before.values()) & set(after.values())
    assert browser.run("document.getElementById('errors').innerHTML") != chart
    (rule,) = (one.rules for one in candidates() if one.name == "late_lines")
    expected = expect_of_last(rule, scan.gram_table, 1200, False).relative_error
    assert after["error"] == f"{expected:.2f}"
    assert browser.run("document.getElementById('slider').getAttribute('aria-valuetext')") == "step 1200"
    assert f"{expected:.2f} at step 1200" in browser.run("document.getElementById('errors').ariaLabel")
    browser.press("Home")
    assert browser.text("target-said") == "step 402"
    assert browser.said == []


def test_recipes_are_those_that_were_chosen(page: Path, browser: Browser) -> None:
    browser.open(page)
    methods = browser.run("JSON.parse(document.getElementById('data').textContent).methods")
    steps = (0, 40, 80, 100, 120, 160, 200, 400)
    for number, method in enumerate(methods):
        browser.choose("method", number)
        for place, target in ((7, 555), (4, 333)):
            browser.choose("origin", place)
            browser.choose("target", target)
            recipe = parse_recipe(browser.text("recipe"))
            assert recipe.target_steps == (target,)
            assert recipe.trajectory.steps.only == steps[: place + 1]
            (rule,) = recipe.rules
            (wanted,) = next(one.rules for one in candidates() if one.name == method["name"])
            assert rule == wanted
            assert f"--to {target} --max-step {steps[place]} --out" in browser.text("commands")
    assert browser.said == []


@pytest.mark.slow
def test_a_recipe_of_the_page_can_be_planned(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.choose("target", 500)
    plan = api.plan(parse_recipe(browser.text("recipe")))
    assert [step for step, *_ in plan.checkpoints] == [0, 40, 80, 100, 120, 160, 200, 400]


def test_an_earlier_origin_says_what_was_found(page: Path, scan: Scan, browser: Browser) -> None:
    browser.open(page)
    browser.choose("origin", 6)
    assert browser.text("target-said") == "step 400"
    row = next(
        row
        for row in api.backtest(scan).rows
        if (row.method, row.last_step, row.target_step) == ("late_lines", 200, 400)
    )
    assert f"the error found is {row.error:.2f}" in browser.text("found")
    assert browser.text("error") == f"{row.expected_error:.2f}"
    assert "later checkpoint" in browser.run("document.querySelector('.key').innerText")
    table = browser.run(
        "[...document.getElementById('rows').rows].map((row) => [...row.cells].map((one) => one.textContent))"
    )
    assert ["400", f"{row.expected_error:.2f}"] == next(cells[:2] for cells in table if cells[0] == "400")
    assert any(cells[3] == f"{row.error:.2f}" for cells in table)


def test_copy_takes_the_text(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run("window.taken = []; navigator.clipboard.writeText = async (text) => window.taken.push(text)")
    for part in ("recipe", "commands"):
        browser.run(f"document.querySelector('[data-copy={part}]').focus()")
        browser.run("document.activeElement.click()")
        assert browser.run("window.taken.at(-1)") == browser.text(part)
        assert "copied" in browser.text("copied")
    assert browser.said == []


def test_everything_has_a_name(page: Path, browser: Browser) -> None:
    """For a screen reader: controls are labelled, pictures described, a new answer is told."""
    browser.open(page)
    browser.run(UNFOLD)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {
        role: [node.get("name", {}).get("value", "") for node in nodes if node["role"]["value"] == role]
        for role in ("slider", "spinbutton", "combobox", "button", "image", "status", "heading")
    }
    assert named["slider"] == named["spinbutton"] == ["Step to predict"]
    assert named["combobox"] == ["Predict from", "Method"]
    assert named["button"] == ["Copy", "Copy"]
    assert len(named["image"]) == len(PLOTS) + 2
    assert all(len(name) > 20 for name in named["image"])
    assert named["status"]
    assert all(named["heading"])
    live = browser.run("document.getElementById('answer').getAttribute('aria-live')")
    assert live == "polite"


def test_it_prints_on_few_pages(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = browser.run(
        "['slider', 'answer', 'errors', 'recipe', 'commands', 'verdict'].map("
        "(id) => document.getElementById(id).getBoundingClientRect().height > 0)"
    )
    assert shown == [False, True, True, True, True, True]
    assert browser.run("document.querySelector('.experts details').getBoundingClientRect().height") == 0
    browser.run("document.querySelector('.experts details').open = true")
    assert browser.run("document.querySelector('.experts details').getBoundingClientRect().height") > 100
    browser.open(page)
    assert 1 <= browser.pdf().count(b"/Type /Page\n") <= 2


@pytest.mark.slow
def test_a_clock_can_be_chosen(scan: Scan, browser: Browser, tmp_path: Path) -> None:
    """Where the scan holds rates that fell; targets end where the schedule does."""
    steps = tuple(range(10, 401, 10))
    rates = tuple(1e-6 * (600 - step) / 600 for step in steps)
    api.report(replace(scan, rates=RateHistory(steps, rates, max_steps=600)), out=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    titles = browser.run("[...document.getElementById('clock').options].map((one) => one.textContent)")
    assert titles == ["the learning rate, in full-rate steps", "training steps"]
    by_rate, recipe = browser.text("error"), parse_recipe(browser.text("recipe"))
    assert recipe.trajectory.clock == "learning_rate"
    assert "--clock learning_rate" in browser.text("commands")
    assert browser.text("to-step") == "600"
    browser.choose("clock", 1)
    assert parse_recipe(browser.text("recipe")).trajectory.clock == "steps"
    assert browser.text("to-step") == "1200"
    browser.choose("target", 600)
    by_steps = browser.text("error")
    browser.choose("clock", 0)
    assert browser.text("target-said") == "step 600"
    assert browser.text("error") not in (by_steps, "")
    assert by_rate
    assert browser.said == []


@pytest.mark.slow
def test_too_few_rehearsals_are_said_to_be_too_few(browser: Browser, tmp_path: Path) -> None:
    """By the verdict on top and by the answer below, whatever the expected error is."""
    found = api.report(find_trajectory(str(DEMO), max_step=100), out=tmp_path / "page.html")
    assert found.verdict.level == "unknown"
    assert found.verdict.rehearsals.near == 1
    browser.open(tmp_path / "page.html")
    assert browser.text("level") == "Cannot be judged"
    assert float(browser.text("error")) < 0.5
    assert "the run has 1 rehearsal within a horizon of 1: too few to judge" in browser.text("reason")
    api.report(find_trajectory(str(DEMO)), out=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    browser.choose("origin", 3)
    assert "the run has 1 rehearsal within a horizon of 1: too few to judge" in browser.text("reason")


@pytest.mark.slow
def test_nothing_is_trained_after_the_schedule(scan: Scan, browser: Browser, tmp_path: Path) -> None:
    steps = tuple(range(10, 401, 10))
    rates = tuple(1e-6 * (400 - step) / 400 for step in steps)
    api.report(replace(scan, rates=RateHistory(steps, rates, max_steps=400)), out=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.text("level") == "Nothing to predict"
    assert "nothing is trained after step 400" in browser.text("reason")
    browser.choose("origin", 6)
    assert browser.text("target-said") == "step 400"
    assert "the error found is" in browser.text("found")
    browser.choose("clock", 1)
    browser.choose("origin", 7)
    assert parse_recipe(browser.text("recipe")).trajectory.clock == "steps"
    assert browser.said == []


@pytest.mark.slow
def test_a_method_of_another_package(
    scan_file: Path, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script does not know it, so that it is worked out at some steps; the slider stops at these."""
    monkeypatch.setitem(registry._targets, "halfway", halfway)
    registry.find_method.cache_clear()
    api.report(scan_file, out=tmp_path / "page.html")
    registry.find_method.cache_clear()
    browser.open(tmp_path / "page.html")
    titles = browser.run("[...document.getElementById('method').options].map((one) => one.textContent)")
    assert browser.text("fixed").startswith("The page does not know this method")
    browser.choose("method", titles.index("halfway"))
    assert not browser.run("document.getElementById('fixed').hidden")
    assert 400 < int(browser.text("target-said").removeprefix("step ")) <= 1200
    assert float(browser.text("error")) < 1
    assert "merge_method: halfway\n" in browser.text("recipe")
    browser.choose("origin", 6)
    assert browser.text("target-said") == "step 400"
    assert "the error found is" in browser.text("found")
    assert browser.said == []


def halfway(steps: Sequence[float], target_step: float) -> np.ndarray:
    """Half of the way that a line from the first checkpoint goes."""
    return (
        coefficients("two_point", steps, target_step) + coefficients("persistence", steps, target_step)
    ) / 2


def test_two_checkpoints_can_be_looked_at(short_scan_file: Path, browser: Browser, tmp_path: Path) -> None:
    api.report(short_scan_file, out=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.text("level") == "Cannot be judged"
    assert browser.text("error") == "unknown"
    for number in range(len(browser.run("[...document.getElementById('method').options].map(() => 1)"))):
        browser.choose("method", number)
        assert browser.text("error") == "unknown"
    assert browser.said == []


@pytest.mark.slow
def test_texts_of_others_do_nothing(
    scan_file: Path, results: list[Path], browser: Browser, tmp_path: Path
) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
    told = json.loads(results[0].read_text().replace('"radd"', json.dumps(evil)))
    (tmp_path / "evil.json").write_text(json.dumps(told))
    api.report(scan_file, evaluations=[tmp_path / "evil.json"], out=tmp_path / "page.html", title=evil)
    browser.open(tmp_path / "page.html")
    assert browser.run("document.title") == f"{evil}: trajectory report"
    assert browser.run("document.images.length") == 0
    assert browser.text("target-said") == "step 800"
    assert browser.said == []
    assert re.search(r"TASKS|script", browser.text("commands"))
