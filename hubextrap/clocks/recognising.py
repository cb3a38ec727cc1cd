"""Which schedule the rates of a run have followed so far, and so what comes.

What is before the peak is warm-up, and known. From there on each family is fitted: begin and end are whole steps,
so they are tried, as a family's shape is; what remains is linear least squares. All that fit about as well as
the best have to agree on what comes. Nothing is guessed: where they do not, the message says what to state.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hubextrap.clocks.schedules import Schedule, parse_schedule
from hubextrap.errors import ClockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from hubextrap.clocks.history import RateHistory

    Array = npt.NDArray[np.float64]

MISFIT = 0.002
"""Largest root mean square of what a schedule leaves over, as a share of the peak: they are formulas."""
AGREEMENT = 0.01
"""How far apart the times may be that two schedules give, as a share: half of the 2% that is promised."""
STATE = (
    "state it as `clock: {schedule: cosine, warmup_steps: 20, total_steps: 400}` (any of transformers' names), or "
    "give a file of rates, with those to come, as the clock"
)
_FEWEST = 3
_FLOAT = 1e-6
_POINTS, _BEGINS, _SHAPES, _AHEAD = 128, 24, 33, 513
_MOST_CYCLES = 64
_PLAIN = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A schedule, fitted to a history."""

    schedule: Schedule
    peak: float
    """The rate at which the schedule has 1."""
    shift: int
    """What was logged at step s is the schedule's rate at s - shift: 1 for the update that led there."""
    misfit: float
    """Root mean square of rate - fit, as a share of the peak."""

    def rates(self, steps: npt.ArrayLike) -> Array:
        return self.peak * self.schedule.rates(np.asarray(steps, np.float64) - self.shift)


class _Data(NamedTuple):
    """A history from its peak on, as shares of its largest rate, and what is known beside it."""

    x: Array
    y: Array
    before: tuple[Array, Array]
    """The warm-up."""
    noise: float
    """Root mean square of what was rounded off."""
    flat: int
    """How many entries stay at the peak."""
    max_steps: int | None


class _Fit(NamedTuple):
    family: _Family
    begin: float
    end: float
    shape: float
    height: float
    floor: float
    misfit: float

    def at(self, x: Array) -> Array:
        progress = np.clip((x - self.begin) / max(1.0, self.end - self.begin), 0.0, 1.0)
        if self.family.name == "inverse_sqrt":
            progress = np.maximum(x - self.begin, 0.0)
        return self.floor + self.height * _falling(self.family.curve, progress, self.shape)


class _Family(NamedTuple):
    """A name of transformers', and what of it is searched for; the first is the simplest."""

    name: str
    curve: str
    floor: bool = False
    shapes: tuple[float, ...] = (0.0,)
    zoom: bool = False
    """Whether shapes between those are tried too."""


_FAMILIES = (
    _Family("constant_with_warmup", "constant"),
    _Family("linear", "linear"),
    _Family("cosine", "cosine", shapes=(0.5,)),
    _Family("cosine_with_restarts", "restarts", shapes=tuple(map(float, range(2, _MOST_CYCLES + 1)))),
    _Family("cosine_with_min_lr", "cosine", True, (0.5,)),
    _Family("polynomial", "power", True, tuple(sorted({*_PLAIN, *np.geomspace(0.1, 10, 21).tolist()})), True),
    _Family("inverse_sqrt", "inverse_sqrt"),
    _Family("cosine", "cosine", shapes=tuple(np.linspace(0.05, 0.95, _SHAPES).tolist()), zoom=True),
    _Family("cosine", "cosine", shapes=tuple(np.arange(1.0, 10.5, 0.5).tolist())),
    *(_Family("warmup_stable_decay", curve, True, (0.5,)) for curve in ("linear", "cosine", "1-sqrt")),
)


def _falling(curve: str, progress: Array, shape: Any) -> Array:
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


def recognise(history: RateHistory) -> Recognised:
    """The schedule that a history follows, so far as it can tell.

    A rate that has been constant so far is said to stay so: the decay of a warmup_stable_decay announces
    itself by nothing. Nor does a cosine of several waves, which rises again where one with restarts jumps: up to
    there it counts as the latter.

    Raises:
        ClockError: the warm-up is still going on; nothing fits; what fits about equally well disagrees about
            the rates to come; or the end of the run is not known.
    """
    data = _prepared(history)
    fits = list(_all_fits(data))
    best = min((fit.misfit for fit in fits), default=math.inf)
    if best > MISFIT + 2 * data.noise:
        unknown = "" if data.max_steps else ", and no max_steps says when the run ends"
        near = f" (misfit {best:.1%} of the peak)" if fits else ""
        raise _refusal(history, f"none of the known schedules fits the learning rates so far{near}{unknown}")
    fits = [fit for fit in fits if fit.misfit <= max(2 * best, 2 * data.noise + _FLOAT)]
    rank = min(_FAMILIES.index(fit.family) for fit in fits)
    simplest = [fit for fit in fits if _FAMILIES.index(fit.family) == rank]
    chosen = min(simplest, key=lambda fit: _plainness(fit, data))
    _compare(history, data, chosen, fits)
    return _named(chosen, data, max(history.rates))


def _refusal(history: RateHistory, what: str) -> ClockError:
    return ClockError(f"{history.source}: {what}: the rates to come are not known; {STATE}")


def _prepared(history: RateHistory) -> _Data:
    x, rates = np.array(history.steps, np.float64), np.array(history.rates, np.float64)
    if len(x) < _FEWEST:
        raise _refusal(
            history, f"{len(x)} learning rates up to step {history.steps[-1] if len(x) else 0} are too few"
        )
    units = _rounded_off(rates) / rates.max()
    y = rates / rates.max()
    falls = np.flatnonzero(y[1:] < y[:-1] * (1 - 1e-12))
    stop = int(falls[0]) if len(falls) else len(y) - 1
    near = 1.5 * float(units.max()) + 1e-9
    top = int(np.flatnonzero(y[: stop + 1] >= y[stop] - near)[0])
    flat = 1 + next(
        (i for i, value in enumerate(y[top + 1 :]) if abs(value - y[top]) > 2 * near), len(y) - top - 1
    )
    ties = max((len(list(group)) for _, group in itertools.groupby(y[:top].tolist())), default=0)
    if top and stop == len(y) - 1 and (flat < _FEWEST or flat <= 2 * ties):
        raise _refusal(history, f"the warm-up is still going on at step {history.steps[-1]}")
    if len(y) - top < _FEWEST:
        raise _refusal(
            history, f"{len(y) - top} learning rates since the peak at step {history.steps[top]} are too few"
        )
    noise = float(np.sqrt(np.mean(units[top:] ** 2) / 12))
    return _Data(x[top:], y[top:], (x[:top], y[:top]), noise, flat, history.max_steps)


def _rounded_off(rates: Array) -> Array:
    """The unit of each rate's last digit, as all are written with as many; 0 for floats in full."""
    sizes = np.where(rates > 0, rates, rates.max())
    for digits in range(2, 10):
        units = np.asarray(10.0 ** (np.floor(np.log10(sizes)) - digits + 1))
        if np.all(np.abs(rates - np.round(rates / units) * units) <= 1e-9 * sizes):
            return units
    return np.zeros_like(rates)


def trapezoids(x: Array, y: Array) -> Array:
    """The area under a line through points, up to each of them."""
    return np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2 * np.diff(x))])


def _all_fits(data: _Data) -> Iterator[_Fit]:
    for family in _FAMILIES:
        if family.curve == "constant":
            yield _judged(_Fit(family, data.x[0], data.x[-1], 0.0, float(data.y.mean()), 0.0, 0.0), data)
        elif family.name == "inverse_sqrt":
            yield from _inverse_sqrts(family, data)
        elif data.max_steps is not None:
            for shift in (0, 1, -1):
                yield from _search(family, data, shift)


def _judged(fit: _Fit, data: _Data) -> _Fit:
    return fit._replace(misfit=float(np.sqrt(np.mean((data.y - fit.at(data.x)) ** 2))))


def _begins(data: _Data, family: _Family) -> tuple[int, int]:
    """Between which whole steps the fall can begin: at the peak's entry, and after the one before it."""
    stable = family.name == "warmup_stable_decay"
    first = int(data.before[0][-1]) + 1 if len(data.before[0]) else -1
    if data.flat == len(data.x):  # no fall is seen
        return first, int(data.x[0])
    last = int(data.x[min(data.flat, len(data.x) - 1)])
    return (int(data.x[_FEWEST - 1]) if stable else first), (last if stable else min(last, int(data.x[1])))


def _search(family: _Family, data: _Data, shift: int) -> Iterator[_Fit]:
    assert data.max_steps is not None
    end = data.max_steps + shift
    low, high = _begins(data, family)
    low, high = max(low, shift), min(high, end - 1)
    if low > high or (family.name == "warmup_stable_decay" and data.flat < _FEWEST):
        return
    picked = np.unique(np.round(np.linspace(0, len(data.x) - 1, min(_POINTS, len(data.x)))).astype(int))
    x, y = data.x[picked], data.y[picked]
    begins, shapes = np.array([float(low), float(high)]), np.array(family.shapes)
    spacing = float(high - low)
    begins = np.unique(np.round(np.linspace(low, high, _BEGINS)))
    tolerance = 2 * data.noise + _FLOAT
    while True:
        heights, floors, misfits = _solved(family, x, y, begins, shapes, float(end))
        place = np.unravel_index(int(np.argmin(misfits)), misfits.shape)
        best = float(misfits[place])
        kept = np.argwhere(misfits <= max(2 * best, tolerance))
        for i, j in kept[:: max(1, len(kept) // 200)]:
            fit = _Fit(family, begins[i], end, shapes[j], float(heights[i, j]), float(floors[i, j]), 0.0)
            yield _judged(fit, data)
        yield _judged(
            _Fit(
                family,
                begins[place[0]],
                end,
                shapes[place[1]],
                float(heights[place]),
                float(floors[place]),
                0.0,
            ),
            data,
        )
        finer = (len(begins) > 1 and spacing / _BEGINS > 0.5) or (
            family.zoom and np.ptp(shapes) > 1e-7 * shapes.max()
        )
        if not finer or best > 0.2:
            return
        spacing = max(0.5, 2 * spacing / _BEGINS) if spacing / _BEGINS > 0.5 else spacing
        around = float(begins[place[0]])
        if len(begins) > 1 and spacing < high - low:
            begins = np.unique(
                np.round(np.clip(np.linspace(around - spacing, around + spacing, _BEGINS), low, high))
            )
        if family.zoom:
            left, right = shapes[max(0, place[1] - 1)], shapes[min(len(shapes) - 1, place[1] + 1)]
            shapes = np.unique(np.append(np.linspace(left, right, _SHAPES), shapes[place[1]]))


def _solved(
    family: _Family, x: Array, y: Array, begins: Array, shapes: Array, end: float
) -> tuple[Array, Array, Array]:
    """Height, floor and misfit by least squares, for each begin and shape."""
    progress = np.clip((x - begins[:, None]) / np.maximum(1.0, end - begins)[:, None], 0.0, 1.0)
    curves = _falling(family.curve, progress[:, None, :], shapes[None, :, None])
    curves = np.broadcast_to(curves, (len(begins), len(shapes), len(x)))
    squares = (curves**2).mean(-1)
    heights = (curves @ y) / len(x) / np.maximum(squares, 1e-300)
    floors = np.zeros_like(heights)
    if family.floor:
        means = curves.mean(-1)
        spread = squares - means**2
        free = ((curves @ y) / len(x) - means * y.mean()) / np.maximum(spread, 1e-300)
        lifted = y.mean() - free * means
        right = (lifted > 0) & (free > 0) & (spread > 1e-14)
        heights, floors = np.where(right, free, heights), np.where(right, lifted, floors)
    left = y - heights[..., None] * curves - floors[..., None]
    return heights, floors, np.sqrt((left**2).mean(-1))


def _inverse_sqrts(family: _Family, data: _Data) -> Iterator[_Fit]:
    """1 / rate² is a line."""
    falling = data.y > 0
    x, line = data.x[falling], 1 / data.y[falling] ** 2
    slope = float(np.polyfit(x - x[0], line, 1)[0]) if len(x) == len(data.x) else 0.0
    if slope <= 0:
        return
    start = float(np.mean(line - slope * (x - x[0])))
    low, high = _begins(data, family)
    for begin in np.unique(np.round(np.linspace(max(0, low), min(high, data.x[0]), _BEGINS))):
        at_begin = start + slope * (begin - x[0])
        if at_begin > 0 and 0.5 < (scale := round(at_begin / slope)) <= 10**9:
            for timescale in {scale, max(1, scale - 1), scale + 1}:
                curve = _falling("inverse_sqrt", np.maximum(data.x - begin, 0), timescale)
                height = float(curve @ data.y / (curve @ curve))
                yield _judged(_Fit(family, begin, math.inf, float(timescale), height, 0.0, 0.0), data)


def _plainness(fit: _Fit, data: _Data) -> tuple[Any, ...]:
    """Of fits of one family the one to report: a plain shape, and a begin to which the warm-up leads."""
    shift = 0 if math.isinf(fit.end) or data.max_steps is None else fit.end - data.max_steps
    peak, (x, y) = fit.height + fit.floor, data.before
    if fit.family.curve == "constant" or not len(x):
        astray = abs(fit.begin - shift)
    else:
        (left, low), (right, high) = ((x[-2], y[-2]) if len(x) > 1 else (0.0, 0.0)), (x[-1], y[-1])
        astray = abs(high + (high - low) / max(right - left, 1) * (fit.begin - right) - peak)
    usual = fit.family.name != "inverse_sqrt" or fit.shape in (fit.begin, 10_000)
    plain = fit.family.curve != "power" or round(fit.shape, 9) in _PLAIN
    return not plain, not usual, round(float(astray), 4), abs(shift), fit.misfit


def _compare(history: RateHistory, data: _Data, chosen: _Fit, fits: list[_Fit]) -> None:
    """Refuse where others that fit too give other times, anywhere up to the end of the run."""
    waves = chosen.family.name == "cosine_with_restarts"
    end = data.max_steps or 2 * data.x[-1]
    if end <= data.x[-1]:
        return
    ahead = np.linspace(data.x[-1], end, _AHEAD)
    seen = sum(float(trapezoids(x, y)[-1]) for x, y in (data.before, (data.x, data.y)) if len(x))

    def times(fit: _Fit) -> Array:
        return seen + trapezoids(ahead, fit.at(ahead))

    expected = times(chosen)
    for fit in fits:
        if waves and fit.family.name == "cosine":  # of several waves
            continue
        off = np.abs(times(fit) - expected) / np.maximum(expected, 1e-9)
        if off.max() > AGREEMENT:
            one, other = (_in_words(each) for each in (chosen, fit))
            what = f"{one} and {other} fit the learning rates up to step {data.x[-1]:.0f} equally well"
            raise _refusal(history, what)


def _in_words(fit: _Fit) -> str:
    name = fit.family.name
    if fit.family.curve == "power":
        return f"{name} (power {fit.shape:.3g}, minimum {fit.floor / (fit.height + fit.floor):.3g})"
    if fit.family.curve == "restarts" or (name == "cosine" and fit.shape != 0.5):
        return f"{name} (num_cycles {fit.shape:.3g})"
    return f"{name} (minimum {fit.floor / (fit.height + fit.floor):.3g})" if fit.family.floor else name


def _named(fit: _Fit, data: _Data, largest: float) -> Recognised:
    """As transformers' own parameters have it."""
    name, peak = fit.family.name, fit.height + fit.floor
    shift = 0 if math.isinf(fit.end) or data.max_steps is None else int(fit.end) - data.max_steps
    warm = int(fit.begin) - shift
    given: dict[str, Any] = {"schedule": name, "warmup_steps": warm, "total_steps": data.max_steps}
    least = fit.floor / peak
    if name == "constant_with_warmup":
        shift = 0
        given = (
            {"schedule": name, "warmup_steps": int(data.x[0])}
            if len(data.before[0])
            else {"schedule": "constant"}
        )
    elif name == "inverse_sqrt":
        given = {"schedule": name, "warmup_steps": warm, "timescale": int(fit.shape)}
    elif name == "warmup_stable_decay":
        decay = {
            "num_decay_steps": int(fit.end - fit.begin),
            "decay_type": fit.family.curve,
            "min_lr_ratio": least,
        }
        given |= decay | {"warmup_steps": min(warm, int(data.x[0]))}
    elif name == "polynomial":
        given |= {"power": float(fit.shape), "min_lr_rate": least}
    elif name == "cosine_with_restarts":
        given["num_cycles"] = int(fit.shape)
    elif name == "cosine_with_min_lr":
        given["min_lr_rate"] = least
    elif name == "cosine" and fit.shape != 0.5:
        given["num_cycles"] = float(fit.shape)
    return Recognised(parse_schedule(given), peak * largest, shift, fit.misfit)
