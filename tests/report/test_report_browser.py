"""The page in headless Chromium: every plot drawn, nothing cut off, nothing on the console."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
PLOTS = [
    "accuracy-1", "backtest", "direction", "r-squared", "heat-map", "log-probabilities", "examples",
    "explained-variance",
]  # fmt: skip

# Written into the page's title, which --dump-dom prints.
MEASURE = """<script>
const plots = [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll("path, use")].map(mark => mark.getBoundingClientRect());
  const texts = [...svg.querySelectorAll("text")].map(
    text => [text.textContent, text.getBoundingClientRect()]);
  return {
    name: svg.closest("section").id, width: box.width, height: box.height,
    marks: marks.filter(mark => mark.width + mark.height > 1).length,
    texts: texts.length,
    cut: texts.filter(([, text]) => text.left < box.left - 2 || text.right > box.right + 2
      || text.top < box.top - 2 || text.bottom > box.bottom + 2).map(([words]) => words),
  };
});
document.title = JSON.stringify(
  {plots, page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth});
</script>"""


def chromium(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """What it printed, and the lines of its console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", *options, page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_console_is_clean(page: Path, tmp_path: Path) -> None:
    dom, console = chromium(page, tmp_path, "--dump-dom")
    assert console == []
    assert re.findall(r'<section id="([\w-]+)"', dom) == PLOTS


def test_console_is_watched(tmp_path: Path) -> None:
    """What the test above relies on."""
    page = tmp_path / "page.html"
    page.write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><img src="x.png">'
    )
    assert chromium(page, tmp_path / "profile", "--dump-dom")[1]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_drew(page: Path, tmp_path: Path, width: int) -> None:
    measured = tmp_path / "page.html"
    text = page.read_text()
    policy = re.search(r"<meta http-equiv=.Content-Security-Policy.*?>", text)
    assert policy is not None
    measured.write_text(text.replace(policy[0], "").replace("</body>", MEASURE + "</body>"))
    dom, _ = chromium(measured, tmp_path / "profile", "--dump-dom", f"--window-size={width},1000")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found: dict[str, Any] = json.loads(unescape(title[1]))
    assert found["page"] <= found["window"], "the page scrolls sideways"
    assert [plot["name"] for plot in found["plots"]] == PLOTS
    for plot in found["plots"]:
        assert plot["width"] > 0.75 * min(width, 620), plot
        assert plot["height"] > 0.5 * plot["width"], plot
        assert plot["marks"] > 20, plot
        assert plot["texts"] > 8, plot
        assert plot["cut"] == [], plot
