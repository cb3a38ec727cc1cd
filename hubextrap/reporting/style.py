"""How every plot looks, and how it becomes SVG for the page or PNG for the model card."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

WIDTH = 5.2
"""Inches: narrow, so that the text stays readable where a phone scales the plot down."""
INK, FAINT, GRID = "#222222", "#8a8a8a", "#dddddd"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
"""Okabe and Ito's colours, which colour-blind readers tell apart; the markers do it without colour."""

Draw = Callable[[Figure], None]
_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: selectable, and drawn by the browser's own font
    "svg.hashsalt": "hubextrap",  # the same plot gives the same bytes
}


def draw_band(
    axes: Axes,
    places: Sequence[float],
    values: Sequence[float] | NDArray[np.float64],
    stderrs: NDArray[np.float64] | None,
    colour: str,
) -> None:
    """One standard error up and down, where there are any."""
    if stderrs is not None:
        middle, margin = np.asarray(values), np.asarray(stderrs)[: len(values)]
        axes.fill_between(places, middle - margin, middle + margin, color=colour, alpha=0.25, linewidth=0)


def to_svg(draw: Draw, height: float, prefix: str) -> str:
    """An ``<svg>`` element for a page; ids in it start with ``prefix``, so that several can share a page."""
    text = _rendered(draw, height, "svg", metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)


def to_png(draw: Draw, height: float) -> bytes:
    """A PNG, 1040 pixels wide."""
    return _rendered(draw, height, "png", dpi=200)


def _rendered(draw: Draw, height: float, kind: str, **options: Any) -> bytes:
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name may have letters that no font here has
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        matplotlib.rcParams.update(_RC)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format=kind, **options)
    return out.getvalue()
