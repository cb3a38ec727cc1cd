"""Which schedule the rates of a run have followed so far, and so what comes.

What is before the peak is warm-up, and known; from there on each family is fitted. All that fit about as well
as the best have to agree on what comes; where they do not, the message says what to state.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.clocks.families import (
    FAMILIES,
    FEWEST,
    FLOAT,
    MISFIT,
    PLAIN,
    Data,
    Family,
    Fit,
    all_fits,
    begin_range,
    judged,
    moved,
    shift_of,
    trapezoids,
)
from hubextrap.clocks.schedules import Schedule, parse_schedule
from hubextrap.errors import ClockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from hubextrap.clocks.history import RateHistory

    Array = npt.NDArray[np.float64]

AGREEMENT = 0.015
"""How far apart the times may be that two schedules give, as a share; 2% are promised."""
STATE = (
    "state it as `clock: {schedule: cosine, warmup_steps: 20, total_steps: 400}` (any of "
    "transformers' names), or give a file of rates as the clock, with the rates to come"
)
_ASTRAY, _LOST, _BEND = 0.003, 0.3, 0.02
_SHOWS = 0.03
_MOVES = 128
_AHEAD = 513


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


def recognise(history: RateHistory) -> Recognised:
    """The schedule that a history follows, so far as it can tell.

    A rate that has been constant so far is said to stay so: the decay of a warmup_stable_decay announces
    itself by nothing. Nor does a cosine of several waves, which rises again where one with restarts jumps: up
    to there it counts as the latter.

    Raises:
        ClockError: the warm-up is still going on; nothing fits; what fits about equally well disagrees about
            the rates to come; or the end of the run is not known.
    """
    if len(history.steps) >= FEWEST and not history.changes:
        if history.steps[-1] - history.steps[0] < _SHOWS * (history.max_steps or 0):
            raise _refusal(
                history, f"it is constant up to step {history.steps[-1]} only, which fits any schedule"
            )
        return Recognised(parse_schedule({"schedule": "constant"}), max(history.rates), 0, 0.0)
    data = _prepared(history)
    fits = list(all_fits(data))
    best = min((fit.misfit for fit in fits), default=math.inf)
    if best > MISFIT + 2 * data.noise:
        unknown = "" if data.max_steps else ", and there is no max_steps to say when the run ends"
        near = f" (misfit {best:.1%} of the peak)" if fits else ""
        raise _refusal(history, f"none of the known schedules fits the learning rates so far{near}{unknown}")
    tolerance = max(2 * best, _tolerance(data, fits))
    fits = [fit for fit in fits if fit.misfit <= tolerance]
    fits += [fit for fit in _begun_elsewhere(fits, data) if fit.misfit <= tolerance]
    if not (fits := _led_up_to(fits, data)):
        raise _refusal(
            history, "no known schedule both fits the learning rates so far and follows their warm-up"
        )
    rank = min(FAMILIES.index(fit.family) for fit in fits)
    simplest = [fit for fit in fits if FAMILIES.index(fit.family) == rank]
    chosen = min(simplest, key=lambda fit: _plainness(fit, data))
    if not chosen.family.stable and _entries(chosen, data) < chosen.family.parameters + 2:
        raise _few(history, _entries(chosen, data))
    _compare(history, data, chosen, fits)
    return _named(chosen, data, max(history.rates))


def _tolerance(data: Data, fits: list[Fit]) -> float:
    """The misfit that rounding can make.

    What fits to the last digit was not rounded off, unless it has too many parameters for the entries. Nor
    has what stays constant for so long that any fall would show.
    """
    if data.flat == len(data.x):
        seen = data.x[-1] - data.x[0] >= _SHOWS * (data.max_steps or 0)
        return FLOAT if seen else max(FLOAT, 2 * data.noise)
    exact = data.noise < FLOAT
    told = [
        fit.misfit
        for fit in fits
        if _entries(fit, data) >= fit.family.parameters + 3 and (exact or fit.family.curve == "linear")
    ]
    least = min(told, default=math.inf)  # a line alone has few digits by itself
    return max(1e-10, 10 * least) if least < max(FLOAT, 0.02 * data.noise) else max(FLOAT, 2 * data.noise)


def _begun_elsewhere(fits: list[Fit], data: Data) -> Iterator[Fit]:
    """The best of each family, with every begin that makes the same curve of it."""
    best: dict[Family, Fit] = {}
    for fit in fits:
        best[fit.family] = min(fit, best.get(fit.family, fit), key=lambda each: each.misfit)
    for family, fit in best.items():
        if family.curve in ("linear", "power", "inverse_sqrt"):
            low, high = begin_range(data, family)
            low = max(low, 0, shift_of(fit, data))
            evenly = np.round(np.linspace(low, high, min(max(high - low, 0), _MOVES) + 1))
            beside = np.clip(data.x[0] + [0, 1], low, high)  # warm-ups mostly end where an entry is
            for begin in np.unique(np.append(evenly, beside)):
                yield judged(moved(fit, float(begin)), data)


def _entries(fit: Fit, data: Data) -> int:
    return int(np.sum(data.x >= fit.begin))


def _led_up_to(fits: list[Fit], data: Data) -> list[Fit]:
    """Those whose warm-up is a line, and leads to their peak: and of each family the nearest."""
    bent = {fit: _warm_up(fit, data) for fit in fits}
    straightest = min(bend for bend, _ in bent.values())
    fits = [fit for fit in fits if bent[fit][0] <= straightest + _BEND + data.near]
    least = dict.fromkeys(FAMILIES, math.inf)
    for fit in fits:
        least[fit.family] = min(least[fit.family], bent[fit][1])
    near = {family: min(astray, _LOST) + _ASTRAY + data.near for family, astray in least.items()}
    return [fit for fit in fits if bent[fit][1] <= near[fit.family]]


def _few(history: RateHistory, count: int) -> ClockError:
    return _refusal(
        history, f"{count} learning rates since the peak, up to step {history.steps[-1]}, are too few"
    )


def _refusal(history: RateHistory, what: str) -> ClockError:
    return ClockError(f"{history.source}: {what}: the rates to come are not known; {STATE}")


def _prepared(history: RateHistory) -> Data:
    x, rates = np.array(history.steps, np.float64), np.array(history.rates, np.float64)
    if len(x) < FEWEST:
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
    if top and stop == len(y) - 1 and (flat < FEWEST or flat <= 2 * ties):
        raise _refusal(history, f"the warm-up is still going on at step {history.steps[-1]}")
    if len(y) - top < FEWEST + (flat < len(y) - top):
        raise _refusal(
            history, f"{len(y) - top} learning rates since the peak at step {history.steps[top]} are too few"
        )
    noise = float(np.sqrt(np.mean(units[top:] ** 2) / 12))
    return Data(x[top:], y[top:], (x[:top], y[:top]), noise, near, flat, history.max_steps)


def _rounded_off(rates: Array) -> Array:
    """The unit of each rate's last digit, as all are written with as many; 0 for floats in full."""
    sizes = np.where(rates > 0, rates, rates.max())
    for digits in range(4, 10):
        units = np.asarray(10.0 ** (np.floor(np.log10(sizes)) - digits + 1))
        if np.all(np.abs(rates - np.round(rates / units) * units) <= 1e-9 * sizes):
            return units
    return np.zeros_like(rates)


def _warm_up(fit: Fit, data: Data) -> tuple[float, float]:
    """How far the warm-up before a fit is from a line, and how far from its peak that line leads."""
    if fit.family.stable:
        return 0.0, 0.0
    x, y = (np.concatenate(both) for both in zip(data.before, (data.x, data.y), strict=True))
    x, y = x[x < fit.begin], y[x < fit.begin]
    if not len(x):
        return 0.0, 0.0
    if y.max() > fit.peak + data.near + FLOAT:
        return 0.0, math.inf
    if len(x) == 1:
        return 0.0, _astray_from_one(fit, data, float(x[0]), float(y[0]))
    rise = (y[-1] - y[-2]) / (x[-1] - x[-2])
    if rise <= 0:  # of a first update at 0 alone nothing follows
        return 0.0, 0.0
    bend = y[-1] + rise * (x[-3] - x[-1]) - y[-3] if len(x) > 2 else 0.0
    return abs(float(bend)), abs(float(y[-1] + rise * (fit.begin - x[-1]) - fit.peak))


def _astray_from_one(fit: Fit, data: Data, x: float, y: float) -> float:
    """How far from its peak a line from 0 through one entry leads; of its begin alone nothing follows.

    Of a schedule without an end it is not known which update an entry tells of.
    """
    begins = {max(0, shift_of(fit, data))} if math.isfinite(fit.end) else {0, 1}
    return min(
        (abs(y + y / (x - b) * (fit.begin - x) - fit.peak) for b in begins if b < x and y), default=0.0
    )


def _peak_reached(data: Data) -> tuple[float, float]:
    """Between which steps a rate that stays reached its peak: a warm-up that is a line leads there.

    Where no entry lies before the peak: somewhere, or of a rate that was never seen to change, at once.
    """
    if not len(data.before[0]):
        return 0.0, float(data.x[0]) if data.flat < len(data.x) else 0.0
    x, y = np.insert(data.before[0], 0, 0.0), np.insert(data.before[1], 0, 0.0)
    first, led = float(data.x[0]), []
    bend = (y[-1] - y[-2]) / (x[-1] - x[-2]) - (y[-2] - y[-3]) / (x[-2] - x[-3]) if len(x) > 3 else 0.0
    if abs(bend) * (x[-1] - x[-2]) <= _BEND + data.near:
        ones = [(x[-2], y[-2])] if len(x) > 2 else [(0.0, 0.0), (1.0, 0.0)]
        rises = [(y[-1] - low) / (x[-1] - at) for at, low in ones if at < x[-1]]
        led = [float(x[-1] + (data.y[0] - y[-1]) / rise) for rise in rises if rise > 0]
        led = [min(step, first) for step in led if step <= first + 0.5]
    return (min(led), max(led)) if led else (float(x[-1]) + 1, first)


def _plainness(fit: Fit, data: Data) -> tuple[Any, ...]:
    """Of fits of one family the one to report: a plain shape, and a begin to which the warm-up leads."""
    shift = shift_of(fit, data)
    usual = fit.family.name != "inverse_sqrt" or fit.shape in (fit.begin, 10_000)
    plain = fit.family.curve != "power" or round(fit.shape, 9) in PLAIN
    unseen = 0 if len(data.before[0]) else max(0, fit.begin - shift)
    return not plain, not usual, round(_warm_up(fit, data)[1], 4), unseen, abs(shift), fit.misfit


def _compare(history: RateHistory, data: Data, chosen: Fit, fits: list[Fit]) -> None:
    """Refuse where others that fit too give another time at the end, or other rates on the way there."""
    waves = chosen.family.curve == "restarts"
    last = data.x[-1]
    ahead = np.linspace(last, max(last, data.max_steps or 2 * last), _AHEAD)
    time, areas = _time(chosen, data, ahead), trapezoids(ahead, chosen.at(ahead))
    early, late = _peak_reached(data)
    if chosen.family.stable and (late - early) / 2 > 2 * AGREEMENT * time:
        raise _refusal(history, f"the warm-up ended somewhere between step {early:.0f} and step {late:.0f}")
    for fit in fits:
        if waves and fit.family.curve == "cosine" and fit.shape >= 1:
            continue
        apart = np.abs(trapezoids(ahead, fit.at(ahead)) - areas).max() / max(chosen.peak, 1.0)
        if max(float(apart), abs(_time(fit, data, ahead) - time)) > AGREEMENT * time:
            one, other = (_in_words(each) for each in (chosen, fit))
            if one == other:
                what = (
                    f"{one} fits the learning rates up to step {last:.0f}, but they do not show "
                    "when it began or how high it was"
                )
            else:
                what = f"{one} and {other} fit the learning rates up to step {last:.0f} equally well"
            raise _refusal(history, what)


def _time(fit: Fit, data: Data, ahead: Array) -> float:
    """The time at the end, with what a fit says of that before the first entry, and of the peak."""
    x, y = (np.concatenate(both) for both in zip(data.before, (data.x, data.y), strict=True))
    count, area = int(np.searchsorted(x, fit.begin)), 0.0
    if fit.family.curve == "constant":
        area = float(x[0] * y[0]) if not len(data.before[0]) else 0.0
    elif not count:
        begin = max(0.0, fit.begin)
        between = np.linspace(begin, x[0], 33)
        area = begin * fit.peak / 2 + float(trapezoids(between, fit.at(between))[-1])
    elif count < len(x) and x[count] != fit.begin and not fit.family.stable:
        x, y = np.insert(x, count, fit.begin), np.insert(y, count, fit.peak)
    areas = area, float(trapezoids(x, y)[-1]), float(trapezoids(ahead, fit.at(ahead))[-1])
    return sum(areas) / max(fit.peak, 1.0)


def _in_words(fit: Fit) -> str:
    name = fit.family.name
    if fit.family.curve == "power":
        return f"{name} (power {fit.shape:.3g}, minimum {fit.floor / fit.peak:.3g})"
    if fit.family.curve == "restarts" or (name == "cosine" and fit.shape != 0.5):
        return f"{name} (num_cycles {fit.shape:.3g})"
    return f"{name} (minimum {fit.floor / fit.peak:.3g})" if fit.family.floor else name


def _named(fit: Fit, data: Data, largest: float) -> Recognised:
    """As transformers' own parameters have it."""
    name, peak, shift = fit.family.name, fit.peak, shift_of(fit, data)
    warm = int(fit.begin) - shift
    if fit.family.stable:
        warm = max(0, round(sum(_peak_reached(data)) / 2) - shift)
    given: dict[str, Any] = {"schedule": name, "warmup_steps": warm, "total_steps": data.max_steps}
    least = fit.floor / peak
    if name == "constant_with_warmup":
        given = {"schedule": name, "warmup_steps": warm} if warm else {"schedule": "constant"}
    elif name == "inverse_sqrt":
        given = {"schedule": name, "warmup_steps": warm, "timescale": int(fit.shape)}
    elif name == "warmup_stable_decay":
        decay = {
            "num_decay_steps": int(fit.end - fit.begin),
            "decay_type": fit.family.curve,
            "min_lr_ratio": least,
        }
        given |= decay
    elif name == "polynomial":
        given |= {"power": float(fit.shape), "min_lr_rate": least}
    elif name == "cosine_with_restarts":
        given["num_cycles"] = int(fit.shape)
    elif name == "cosine_with_min_lr":
        given |= {"min_lr_rate": least, "num_cycles": float(fit.shape)}
    elif name == "cosine":
        given["num_cycles"] = float(fit.shape)
    return Recognised(parse_schedule(given), peak * largest, shift, fit.misfit)
