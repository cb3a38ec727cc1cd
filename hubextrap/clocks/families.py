"""The families of schedules, each fitted to the rates of a run from their peak on.

Begin and end are whole steps, so they are tried, as a family's shape is; what remains is linear least
squares.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

FEWEST = 3
"""Entries that a fit needs: two rates are any curve."""
MISFIT = 3e-5
"""Largest root mean square of what a schedule leaves over, as a share of the peak, but for what was rounded
off: they are formulas, and ones that are .05% beside half a history may be 15% beside the whole."""
FLOAT = 1e-6
"""The same of rates in float32."""
_POINTS, _BEGINS, _SHAPES, _KEPT = 128, 24, 17, 10
_MOST_CYCLES = 64
_HOPELESS = 0.03
PLAIN = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


class Data(NamedTuple):
    """A history from its peak on, as shares of its largest rate, and what is known beside it."""

    x: Array
    y: Array
    before: tuple[Array, Array]
    """The warm-up."""
    noise: float
    """Root mean square of what was rounded off."""
    near: float
    """What may be rounded off of one."""
    flat: int
    """How many entries stay at the peak."""
    max_steps: int | None


class Fit(NamedTuple):
    family: Family
    begin: float
    end: float
    shape: float
    height: float
    floor: float
    misfit: float

    @property
    def peak(self) -> float:
        return self.height + self.floor

    def at(self, x: Array) -> Array:
        progress = np.clip((x - self.begin) / max(1.0, self.end - self.begin), 0.0, 1.0)
        if self.family.name == "inverse_sqrt":
            progress = np.maximum(x - self.begin, 0.0)
        return self.floor + self.height * falling(self.family.curve, progress, self.shape)


class Family(NamedTuple):
    """A name of transformers', and what of it is searched for; the first is the simplest."""

    name: str
    curve: str
    floor: bool = False
    shapes: tuple[float, ...] = (0.0,)
    zoom: bool = False
    """Whether shapes between those are tried too."""

    @property
    def parameters(self) -> int:
        return 1 + (self.curve != "linear") + self.floor + (len(self.shapes) > 1)

    @property
    def stable(self) -> bool:
        """Whether the rate stays at its peak until it falls."""
        return self.name in ("constant_with_warmup", "warmup_stable_decay")


_HALF = (0.5,)
_PART = tuple(np.linspace(0.05, 0.95, 19).tolist())
_WAVES = tuple(np.arange(1.0, 10.5, 0.5).tolist())
FAMILIES = (
    Family("constant_with_warmup", "constant"),
    Family("linear", "linear"),
    Family("cosine", "cosine", shapes=_HALF),
    Family("cosine_with_restarts", "restarts", shapes=tuple(map(float, range(2, _MOST_CYCLES + 1)))),
    Family("cosine_with_min_lr", "cosine", True, _HALF),
    Family("inverse_sqrt", "inverse_sqrt"),
    Family("polynomial", "power", True, tuple(sorted({*PLAIN, *np.geomspace(0.1, 10, 21).tolist()})), True),
    Family("cosine", "cosine", shapes=_PART, zoom=True),
    Family("cosine", "cosine", shapes=_WAVES),
    *(Family("warmup_stable_decay", curve, True, _HALF) for curve in ("linear", "cosine", "1-sqrt")),
    Family("cosine_with_min_lr", "cosine", True, _PART, True),
    Family("cosine_with_min_lr", "cosine", True, _WAVES),
)
"""The simplest first."""


def falling(curve: str, progress: Array, shape: Any) -> Array:
    """From 1 at progress 0, to what it is at 1."""
    if curve == "constant":
        return np.ones_like(progress)
    if curve == "linear":
        return 1 - progress
    if curve == "cosine":
        return np.asarray(0.5 * (1 + np.cos(2 * np.pi * shape * progress)))
    if curve == "restarts":
        return np.where(progress >= 1, 0.0, 0.5 * (1 + np.cos(np.pi * ((shape * progress) % 1.0))))
    if curve == "power":
        return np.asarray((1 - progress) ** shape)
    if curve == "1-sqrt":
        return np.asarray(1 - np.sqrt(progress))
    return np.asarray(1 / np.sqrt(1 + progress / shape))


def trapezoids(x: Array, y: Array) -> Array:
    """The area under a line through points, up to each of them."""
    return np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2 * np.diff(x))])


def all_fits(data: Data) -> Iterator[Fit]:
    for family in FAMILIES:
        if family.curve == "constant":
            yield judged(Fit(family, data.x[0], data.x[-1], 0.0, float(data.y.mean()), 0.0, 0.0), data)
        elif family.name == "inverse_sqrt":
            yield from _inverse_sqrts(family, data)
        elif data.max_steps is not None:
            for shift in (0, 1, -1):
                yield from _search(family, data, shift)


def judged(fit: Fit, data: Data) -> Fit:
    fell = slice(None) if fit.family.stable else data.x >= fit.begin
    left = data.y[fell] - fit.at(data.x[fell])
    enough = len(left) >= FEWEST
    return fit._replace(misfit=float(np.sqrt(np.mean(left**2))) if enough else math.inf)


def begin_range(data: Data, family: Family) -> tuple[int, int]:
    """Between which whole steps the fall can begin: from the last entry of the warm-up that is seen on."""
    x, fell = data.x, data.x[min(data.flat, len(data.x) - 1)]
    if family.stable:
        return int(x[FEWEST - 1]), int(fell)
    if not len(data.before[0]):
        return -1, int(x[1])
    # the highest entry may stand in the warm-up still, and so may some that were rounded to it
    rise = (data.y[0] - data.before[1][-1]) / (x[0] - data.before[0][-1])
    return int(data.before[0][-1]) + 1, int(min(fell, max(x[1], x[0] + 3 * data.near / max(rise, 1e-12))))


def _search(family: Family, data: Data, shift: int) -> Iterator[Fit]:
    """Those that fit, of begins and shapes on a grid, which is made finer around the best."""
    assert data.max_steps is not None
    end = data.max_steps + shift
    low, high = begin_range(data, family)
    low, high = max(low, shift), min(high, end - 1)
    if low > high or (family.stable and not FEWEST <= data.flat < len(data.x)):
        return
    picked = np.unique(np.round(np.linspace(0, len(data.x) - 1, min(_POINTS, len(data.x)))).astype(int))
    x, y = data.x[picked], data.y[picked]
    begins, shapes = np.unique(np.round(np.linspace(low, high, _BEGINS))), np.array(family.shapes)
    if family.curve in ("restarts", "cosine"):  # of shorter cycles the entries would not tell
        shapes = shapes[shapes * 3 * np.median(np.diff(data.x)) <= end - low]
    apart = float(high - low) / (_BEGINS - 1)
    while len(shapes):
        heights, floors, misfits = _solved(family, x, y, begins, shapes, float(end))
        best = int(np.argmin(misfits))
        near = np.flatnonzero(misfits <= max(2 * misfits.flat[best], 2 * data.noise + FLOAT))
        near = near[:: max(1, len(near) // _KEPT)] if misfits.flat[best] <= _HOPELESS / 10 else near[:0]
        for place in {best, *near.tolist()}:
            i, j = divmod(place, len(shapes))
            begin, shape, height, floor = map(float, (begins[i], shapes[j], heights[i, j], floors[i, j]))
            yield judged(Fit(family, begin, float(end), shape, height, floor, 0.0), data)
        finer = family.zoom and np.ptp(shapes) > 1e-8 * shapes.max()
        if misfits.flat[best] > _HOPELESS or not (finer or apart > 1):
            return
        i, j = divmod(best, len(shapes))
        if apart > 1:
            begins = np.unique(np.round(np.clip(begins[i] + np.linspace(-apart, apart, _BEGINS), low, high)))
            apart = 2 * apart / (_BEGINS - 1)
        if finer:
            between = np.linspace(shapes[max(0, j - 1)], shapes[min(len(shapes) - 1, j + 1)], _SHAPES)
            shapes = np.unique(np.append(between, shapes[j]))


def _solved(
    family: Family, x: Array, y: Array, begins: Array, shapes: Array, end: float
) -> tuple[Array, Array, Array]:
    """Height, floor and misfit by least squares, for each begin and shape."""
    progress = np.clip((x - begins[:, None]) / np.maximum(1.0, end - begins)[:, None], 0.0, 1.0)
    curves = falling(family.curve, progress[:, None, :], shapes[None, :, None])
    curves = np.broadcast_to(curves, (len(begins), len(shapes), len(x)))
    counted = np.ones((len(begins), len(x))) if family.stable else (x >= begins[:, None]).astype(float)
    counted /= np.maximum(counted.sum(1), 1)[:, None]

    def mean(values: Array) -> Array:
        return np.asarray(np.einsum("bsx,bx->bs", values, counted))

    average = (counted @ y)[:, None]
    products, squares = mean(curves * y), mean(curves**2)
    heights = products / np.maximum(squares, 1e-300)
    floors = np.zeros_like(heights)
    if family.floor:
        means = mean(curves)
        spread = squares - means**2
        free = (products - means * average) / np.maximum(spread, 1e-300)
        lifted = average - free * means
        right = (lifted > 0) & (free > 0) & (spread > 1e-14)
        heights, floors = np.where(right, free, heights), np.where(right, lifted, floors)
    left = y - heights[..., None] * curves - floors[..., None]
    return heights, floors, np.sqrt(mean(left**2))


def _inverse_sqrts(family: Family, data: Data) -> Iterator[Fit]:
    """1 / rate² is a line."""
    if not data.y.all():
        return
    low, high = begin_range(data, family)
    for begin in np.unique(np.round(np.linspace(max(0, low), high, _BEGINS))):
        fell = data.x >= begin
        x, y = data.x[fell], data.y[fell]
        if len(x) < FEWEST:
            return
        slope, start = np.polyfit(x - begin, 1 / y**2, 1)
        if slope <= 0 or start <= 0 or not 0.5 < (scale := round(float(start / slope))) <= 10**9:
            continue
        for timescale in {scale, max(1, scale - 1), scale + 1}:
            curve = falling("inverse_sqrt", x - begin, float(timescale))
            height = float(curve @ y / (curve @ curve))
            yield judged(Fit(family, float(begin), math.inf, float(timescale), height, 0.0, 0.0), data)


def moved(fit: Fit, begin: float) -> Fit:
    """The same curve, said to begin elsewhere, where that makes no other of it."""
    curve, scale = fit.family.curve, fit.end - begin
    if fit.family.stable or begin < 0 or scale < 1:
        return fit
    if curve in ("linear", "power"):
        power = 1.0 if curve == "linear" else fit.shape
        return fit._replace(begin=begin, height=fit.height * (scale / (fit.end - fit.begin)) ** power)
    if curve == "inverse_sqrt" and (timescale := fit.shape + begin - fit.begin) >= 1:
        return fit._replace(
            begin=begin, shape=timescale, height=fit.height * math.sqrt(fit.shape / timescale)
        )
    return fit


def shift_of(fit: Fit, data: Data) -> int:
    """By how many steps the entries lie behind the schedule's own steps."""
    endless = math.isinf(fit.end) or fit.family.curve == "constant" or data.max_steps is None
    return 0 if endless else int(fit.end) - (data.max_steps or 0)
