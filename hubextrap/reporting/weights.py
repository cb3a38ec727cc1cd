"""Plots of what the scan says about weights and log-probabilities."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import PercentFormatter

from hubextrap.foreign_text import plot_text
from hubextrap.methods import leading_subspace
from hubextrap.reporting.style import BLUE, FAINT, GREEN, INK, VERMILION, draw_band
from hubextrap.scans.scan import module_kind
from hubextrap.statistics.linearity import LINEAR, MIN_RANGE, r_squared
from hubextrap.statistics.spread import stderr_of_ratio, stderr_of_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hubextrap.scans.scan import Scan
    from hubextrap.statistics import GramTable

SHOWN_BINS = 40
WALKS = 20_000
_LAYER = re.compile(r"\.(\d+)\.")


def draw_r_squared(figure: Figure, shares: NDArray[np.float64], steps: Sequence[int], what: str) -> None:
    """A histogram, (SHOWN_BINS,) that sums to 1, over that of random walks."""
    axes = figure.subplots()
    edges = np.linspace(0, 1, SHOWN_BINS + 1)
    axes.bar(edges[:-1], shares, 1 / SHOWN_BINS, align="edge", color=BLUE, linewidth=0, label=what)
    axes.stairs(walk_shares(steps), edges, color=VERMILION, linewidth=1.8, label="a random walk")
    axes.axvline(LINEAR, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"{LINEAR}: called linear", (LINEAR, 0.97), (-4, 0), ("data", "axes fraction"), "offset points",
        ha="right", va="top", color=INK, fontsize=9,
    )  # fmt: skip
    axes.set(xlim=(0, 1), xlabel="R² of the straight line against the step", ylabel=f"share of {what}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")


def walk_shares(steps: Sequence[int]) -> NDArray[np.float64]:
    """(SHOWN_BINS,): the histogram of R² of Gaussian random walks at these steps, always the same."""
    moves = np.random.default_rng(0).standard_normal((WALKS, len(steps) - 1)) * np.sqrt(np.diff(steps))
    positions = np.concatenate([np.zeros((WALKS, 1)), np.cumsum(moves, axis=1)], axis=1)
    return r_squared_shares(r_squared(steps, positions))


def r_squared_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(SHOWN_BINS,): shares of R² values."""
    return shown_shares(np.histogram(values, SHOWN_BINS, (0, 1))[0])


def shown_shares(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """(SHOWN_BINS,): shares from a histogram as fine or finer, such as a scan's."""
    counts = histogram.reshape(SHOWN_BINS, -1).sum(axis=1)
    return np.asarray(counts / max(counts.sum(), 1), dtype=np.float64)


def heat_map(
    scan: Scan, figure: Literal["median", "median_stderr"] = "median"
) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Kinds of module, layers (``–`` where a tensor has none), and the median R², or its standard error, NaN
    where none was kept."""
    cells: dict[tuple[str, int], list[int]] = {}
    for row, tensor in enumerate(scan.tensors):
        found = _LAYER.search(tensor)
        cells.setdefault((module_kind(tensor), int(found[1]) if found else -1), []).append(row)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    values = np.full((len(kinds), len(layers)), np.nan)
    row_of, column_of = ({what: at for at, what in enumerate(some)} for some in (kinds, layers))
    for (kind, layer), rows in cells.items():
        found = getattr(scan.linearity(rows), figure)
        if found is not None:
            values[row_of[kind], column_of[layer]] = found
    return kinds, ["–" if layer < 0 else str(layer) for layer in layers], values


def draw_heat_map(figure: Figure, scan: Scan) -> None:
    kinds, layers, values = heat_map(scan)
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.set_facecolor("#f0f0f0")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=colormaps["cividis"].resampled(20),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.5,
    )
    if len(layers) <= 8:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=9,
                    color="white" if value < 0.6 else "black",
                )  # fmt: skip
    every = max(1, -(-len(layers) // 12))
    axes.set_xticks(np.arange(len(layers))[::every] + 0.5, layers[::every])
    axes.set_yticks(np.arange(len(kinds)) + 0.5, list(map(plot_text, kinds)), fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xlabel("layer" + (" (– : outside the layers)" if "–" in layers else ""))
    figure.colorbar(mesh, ax=axes, label="median R²", fraction=0.06, pad=0.02)


def chosen_examples(scan: Scan, count: int = 6) -> list[tuple[str, float, NDArray[np.float64]]]:
    """(tensor, R², values) of kept weights from the least to the most linear, at equal distances in rank."""
    values = scan.example_values.astype(np.float64)
    tensors, places = np.nonzero(np.isfinite(values).all(axis=2))
    kept = [
        (scan.tensors[tensor], float(r_squared(scan.steps, values[tensor, place])), values[tensor, place])
        for tensor, place in zip(tensors, places, strict=True)
        if np.ptp(values[tensor, place]) > MIN_RANGE
    ]
    kept.sort(key=lambda example: example[1])
    ranks = np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int)
    return [kept[rank] for rank in ranks]


def draw_examples(figure: Figure, scan: Scan) -> None:
    examples = chosen_examples(scan)
    steps = np.array(scan.steps, dtype=np.float64)
    panels = figure.subplots(-(-len(examples) // 2), 2, sharex=True, squeeze=False).ravel()
    for axes in panels[len(examples) :]:
        axes.set_visible(False)
    for axes, (tensor, fit, values) in zip(panels, examples, strict=False):
        moved = values - values[0]
        slope, intercept = np.polyfit(steps, moved, 1)
        axes.plot(steps, intercept + slope * steps, color=VERMILION, linewidth=1.4)
        axes.plot(steps, moved, "o", color=BLUE)
        layer = _LAYER.search(tensor)
        name = module_kind(tensor) + (f", layer {layer[1]}" if layer else "")
        axes.set_title(f"{plot_text(name)}\nR² {fit:.2f}", loc="left", fontsize=9)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.yaxis.offsetText.set_fontsize(8)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=4)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("weight − its first value", fontsize=10)


def explained(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K − 1,): share of the squared deltas that the first r directions hold, for Gram matrices (..., K, K).

    Each tensor has its own directions; shares are over all tensors together.
    """
    squares = _squares(gram).reshape(-1, gram.shape[-1]).sum(axis=0)
    return np.asarray(np.cumsum(squares)[:-1] / max(squares.sum(), np.finfo(float).tiny), dtype=np.float64)


def explained_stderrs(table: GramTable) -> NDArray[np.float64] | None:
    """(K − 1,): those of `explained`; None where all weights were read."""
    if table.sample is None:
        return None
    return stderr_of_ratio(
        table,
        lambda gram: np.cumsum(_squares(gram), axis=-1)[:, :-1],
        lambda gram: _squares(gram).sum(axis=-1),
    )


def _squares(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., K): what each direction holds, the first one most."""
    return np.asarray(np.linalg.eigvalsh(gram)[..., ::-1].clip(min=0.0))


def walk_explained(steps: Sequence[int]) -> NDArray[np.float64]:
    """The same for a random walk in many dimensions: its Gram matrix is min(s_i, s_j) − s_0."""
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    return explained(np.minimum(times[:, None], times[None, :]))


def draw_explained(figure: Figure, scan: Scan) -> None:
    axes = figure.subplots()
    for shares, colour, marker, label in (
        (explained(scan.gram_table.gram), BLUE, "o", "this run"),
        (walk_explained(scan.steps), VERMILION, "s", "a random walk"),
    ):
        shown = shares[:10]
        axes.plot(range(1, len(shown) + 1), shown, marker=marker, color=colour, label=label)
    shares, stderrs = explained(scan.gram_table.gram)[:10], explained_stderrs(scan.gram_table)
    draw_band(axes, range(1, len(shares) + 1), shares, stderrs, BLUE)
    axes.set(xlabel="rank", ylabel="share of the squared motion", ylim=(None, 1.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="lower right")


def direction(scan: Scan, rounded: bool = False) -> tuple[list[int], list[float], list[float]]:
    """Origins, and the cosine of what came after each with the line from the first checkpoint, and from the
    middle of the past.

    Args:
        rounded: take the signal, as rounding has no direction: it would hide that of short ways.
    """
    moves, steps = scan.gram_table.gram, scan.steps
    gram = (leading_subspace(moves) if rounded else moves).sum(axis=0)

    def cosine(past: NDArray[np.float64], future: NDArray[np.float64]) -> float:
        scale = float(past @ gram @ past) * float(future @ gram @ future)
        return float(past @ gram @ future) / scale**0.5 if scale > 0 else float("nan")

    origins, ways = _ways(steps)
    cosines = [cosine(*way) for way in ways]
    return [steps[at] for at in origins], cosines[: len(origins)], cosines[len(origins) :]


def direction_stderrs(
    scan: Scan, rounded: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Those of both of `direction`'s cosines, linearised; None where all weights were read."""
    table = scan.gram_table
    if table.sample is None:
        return None
    origins, ways = _ways(scan.steps)
    past, future = np.array(ways).transpose(1, 0, 2)

    def products(gram: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """(N, ways) each: past with future, and each with itself."""
        some = leading_subspace(gram) if rounded else gram
        both = ((past, future), (past, past), (future, future))
        return [np.einsum("wk,nkl,wl->nw", one, some, other, optimize=True) for one, other in both]

    totals = [one.sum(axis=0) for one in products(table.gram)]
    along, behind, ahead = (np.where(totals[1] * totals[2] > 0, one, np.nan) for one in totals)

    def pull(gram: NDArray[np.float64]) -> NDArray[np.float64]:
        p, b, a = products(gram)
        return np.asarray((p - along / 2 * (b / behind + a / ahead)) / np.sqrt(behind * ahead))

    stderrs = stderr_of_sum(table, pull)
    return stderrs[: len(origins)], stderrs[len(origins) :]


def _ways(steps: Sequence[int]) -> tuple[list[int], list[NDArray[np.float64]]]:
    """Origins; and (2, K) for each, the way behind it and the way to the last checkpoint: first those that
    begin at the first checkpoint, then those from the middle of the past."""
    origins = list(range(2, len(steps) - 1))
    halves = [int(np.searchsorted(steps, (steps[0] + steps[at]) / 2)) for at in origins]
    starts = [*(0 for _ in origins), *(min(half, at - 1) for half, at in zip(halves, origins, strict=True))]
    ways = []
    for start, at in zip(starts, origins * 2, strict=True):
        way = np.zeros((2, len(steps)))
        way[0, start] -= 1
        way[:, at] += (1, -1)
        way[1, -1] += 1
        ways.append(way)
    return origins, ways


def draw_direction(figure: Figure, scan: Scan, rounded: bool = False) -> None:
    origins, from_first, from_half = direction(scan, rounded)
    axes = figure.subplots()
    axes.plot(origins, from_half, "o-", color=BLUE, label="line from half way")
    axes.plot(origins, from_first, "s-", color=GREEN, label=f"line from step {scan.steps[0]}")
    if (stderrs := direction_stderrs(scan, rounded)) is not None:
        draw_band(axes, origins, from_half, stderrs[1], BLUE)
        draw_band(axes, origins, from_first, stderrs[0], GREEN)
    axes.set(xlabel="last observed step", ylabel=f"cosine with the way to step {scan.steps[-1]}")
    axes.set_ylim(np.nanmin([0.0, *from_first, *from_half]), 1.02)
    axes.legend(loc="lower right")
