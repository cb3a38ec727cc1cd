"""The learning-rate schedules of transformers' SchedulerType that are functions of the step.

A rate is a share of the peak, as transformers' lambdas have it: update number s + 1 is made with ``rate(s)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import ClockError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

LARGEST_STEP = 10**12
"""Beyond what anybody trains; whole numbers up to it are exact as floats, also when they are summed."""

_STEPS = "a whole number of steps"
_SHARE = "a share of the peak, from 0 to less than 1"
_SHAPES = ("linear", "cosine", "1-sqrt")
_A_FILE = "give a file of the rates as the clock: CSV with the columns step and learning_rate"
_OF_LOSSES = ("reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True, slots=True)
class _Key:
    """What a key takes, in words and as a check; ``default`` is `_REQUIRED` where it has to be given."""

    takes: str
    fits: Callable[[Any], bool]
    default: Any


_REQUIRED = object()


def _whole(lowest: int, default: Any = _REQUIRED) -> _Key:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= LARGEST_STEP

    return _Key(f"{_STEPS} from {lowest} on", fits, default)


def _number(takes: str, low: float, high: float, default: Any = _REQUIRED, *, from_low: bool = False) -> _Key:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (low <= value if from_low else low < value) and (value < high if from_low else value <= high)

    return _Key(takes, fits, default)


def _one_of(names: tuple[str, ...], default: str) -> _Key:
    return _Key(
        "one of " + ", ".join(names), lambda value: isinstance(value, str) and value in names, default
    )


_WARMUP = {"warmup_steps": _whole(0, 0)}
_ENDING = {**_WARMUP, "total_steps": _whole(1)}
_WAVES = {"num_cycles": _number("a number of waves above 0, up to 1000", 0, 1000, 0.5)}
_MINIMUM = {"min_lr_rate": _number(_SHARE, 0, 1, from_low=True)}
_TAKES: dict[str, dict[str, _Key]] = {
    "constant": {},
    "constant_with_warmup": {"warmup_steps": _whole(1)},
    "linear": _ENDING,
    "cosine": {**_ENDING, **_WAVES},
    "cosine_with_restarts": {
        **_ENDING,
        "num_cycles": _Key("a whole number of cycles from 1 to 1000", _whole(1).fits, 1),
    },
    "polynomial": {
        **_ENDING,
        "power": _number("a number above 0, up to 100", 0, 100, 1.0),
        # transformers' lr_end is a rate, 1e-7 where nothing is said: no share of the peak follows from that
        "min_lr_rate": _number(f"lr_end / learning_rate, {_SHARE}", 0, 1, from_low=True),
    },
    "inverse_sqrt": {**_WARMUP, "timescale": _whole(1, None)},
    "cosine_with_min_lr": {**_ENDING, **_MINIMUM, **_WAVES},
    "cosine_warmup_with_min_lr": {
        **_ENDING,
        **_MINIMUM,
        **_WAVES,
        "warmup_lr_rate": _number(_SHARE, 0, 1, None, from_low=True),
    },
    "warmup_stable_decay": {
        **_ENDING,
        "num_decay_steps": _whole(1),
        "warmup_type": _one_of(_SHAPES, "linear"),
        "decay_type": _one_of(_SHAPES, "cosine"),
        "min_lr_ratio": _number(_SHARE, 0, 1, 0.0, from_low=True),
        "num_cycles": _number("a number of waves above 0, up to 1000", 0, 1000, 0.5),
    },
}
SCHEDULES = tuple(_TAKES)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule by its name, with all of its parameters; made by `parse_schedule`."""

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, key: str) -> Any:
        return dict(self.parameters)[key]

    @property
    def warmup_steps(self) -> int:
        """Steps until it reaches its peak."""
        return int(dict(self.parameters).get("warmup_steps", 0))

    @property
    def total_steps(self) -> int | None:
        """The step at which it ends; None where it goes on for ever."""
        return dict(self.parameters).get("total_steps")

    def rates(self, steps: npt.ArrayLike) -> Array:
        """The rate at each step as a share of the peak, also between steps and beyond the last."""
        at = np.asarray(steps, np.float64)
        given = dict(self.parameters)
        warm = given.get("warmup_steps", 0)
        rising, falling = _rising(self.name, given, at), _FALLING[self.name](given, at)
        return np.where(at < warm, rising, falling)

    def as_json(self) -> dict[str, Any]:
        """As a recipe has it, without what is as it is anyway."""
        keys = _TAKES[self.name]
        return {"schedule": self.name} | {
            key: value for key, value in self.parameters if value != keys[key].default
        }


def _rising(name: str, given: dict[str, Any], at: Array) -> Array:
    warm = given.get("warmup_steps", 0)
    share: Array = np.clip(at / max(1, warm), 0.0, 1.0)
    if name == "cosine_warmup_with_min_lr":
        if given["warmup_lr_rate"] is None:
            return np.asarray((at + 1) / max(1, warm))
        first = float(given["warmup_lr_rate"])
        return np.asarray(first + (1 - first) * at / max(1, warm - 1))
    if name == "warmup_stable_decay":
        if given["warmup_type"] == "cosine":
            share = 0.5 * (1 - np.cos(np.pi * share))
        elif given["warmup_type"] == "1-sqrt":
            share = 1 - np.sqrt(1 - share)
        return np.asarray(share * (1 - given["min_lr_ratio"]) + given["min_lr_ratio"])
    return share


def _progress(given: dict[str, Any], at: Array) -> Array:
    warm: int = given["warmup_steps"]
    return np.asarray((at - warm) / max(1, given["total_steps"] - warm))


def _ones(given: dict[str, Any], at: Array) -> Array:
    return np.ones_like(at)


def _linear(given: dict[str, Any], at: Array) -> Array:
    return np.maximum(0.0, 1 - _progress(given, at))


def _wave(given: dict[str, Any], progress: Array, minimum: float = 0.0) -> Array:
    factor = 0.5 * (1 + np.cos(np.pi * given["num_cycles"] * 2.0 * progress))
    return np.asarray(np.maximum(0.0, factor * (1 - minimum) + minimum))


def _cosine(given: dict[str, Any], at: Array) -> Array:
    return _wave(given, _progress(given, at), given.get("min_lr_rate", 0.0))


def _cosine_a_step_ahead(given: dict[str, Any], at: Array) -> Array:
    return _wave(given, _progress(given, at + 1), given["min_lr_rate"])


def _restarts(given: dict[str, Any], at: Array) -> Array:
    progress = _progress(given, at)
    falling = 0.5 * (1 + np.cos(np.pi * ((given["num_cycles"] * progress) % 1.0)))
    return np.where(progress >= 1, 0.0, falling)


def _polynomial(given: dict[str, Any], at: Array) -> Array:
    left = np.clip(1 - _progress(given, at), 0.0, 1.0)
    return np.asarray((1 - given["min_lr_rate"]) * left ** given["power"] + given["min_lr_rate"])


def _inverse_sqrt(given: dict[str, Any], at: Array) -> Array:
    scale = given["timescale"] or given["warmup_steps"] or 10_000
    return np.asarray(1 / np.sqrt(np.maximum(at - given["warmup_steps"], 0) / scale + 1))


def _stable_then_falling(given: dict[str, Any], at: Array) -> Array:
    decay = given["num_decay_steps"]
    share = np.clip((at - (given["total_steps"] - decay)) / decay, 0.0, 1.0)
    kind, minimum = given["decay_type"], given["min_lr_ratio"]
    if kind == "cosine":
        falling = 0.5 * (1 + np.cos(np.pi * given["num_cycles"] * 2.0 * share))
    else:
        falling = 1 - (share if kind == "linear" else np.sqrt(share))
    return np.asarray(np.where(share >= 1, minimum, falling * (1 - minimum) + minimum))


_FALLING: dict[str, Callable[[dict[str, Any], Array], Array]] = {
    "constant": _ones,
    "constant_with_warmup": _ones,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine,
    "cosine_warmup_with_min_lr": _cosine_a_step_ahead,
    "warmup_stable_decay": _stable_then_falling,
}


def schedule_problems(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a schedule as a recipe gives it: keys, each with its problem."""
    name = mapping.get("schedule")
    if name in _OF_LOSSES:
        return [("schedule", f"{name} depends on the run's losses, not on the step alone; {_A_FILE}")]
    if not isinstance(name, str) or name not in _TAKES:
        said = "is missing" if name is None else f"{name!r} is unknown"
        return [("schedule", f"{said}; choose one of {', '.join(SCHEDULES)}. For another, {_A_FILE}")]
    keys = _TAKES[name]
    takes = f"{name} takes " + (", ".join(keys) or "nothing else")
    given = {key: value for key, value in mapping.items() if key != "schedule"}
    problems = [(str(key), f"unknown; {takes}") for key in given if key not in keys]
    for key, kind in keys.items():
        if key in given and not kind.fits(given[key]):
            problems.append((key, f"{given[key]!r} does not fit; give {kind.takes}"))
        elif key not in given and kind.default is _REQUIRED:
            problems.append((key, f"missing: {kind.takes}; {takes}"))
    return problems or _joint_problems(given)


def _joint_problems(given: dict[str, Any]) -> list[tuple[str, str]]:
    warm, total = given.get("warmup_steps", 0), given.get("total_steps")
    decay = given.get("num_decay_steps", 0)
    problems = []
    if total is not None and warm + decay >= total + (decay > 0):
        parts = "the warm-up and the decay together" if decay else "the warm-up"
        problems.append(("total_steps", f"{total} steps end before {parts} of {warm + decay} steps"))
    if not warm:
        problems += [
            (key, "has no effect without warmup_steps")
            for key in ("warmup_lr_rate", "warmup_type")
            if key in given
        ]
    if given.get("decay_type", "cosine") != "cosine" and "num_cycles" in given:
        problems.append(("num_cycles", f"has no effect with decay_type: {given['decay_type']}"))
    return problems


def parse_schedule(mapping: Mapping[str, Any]) -> Schedule:
    """The schedule that a mapping states: ``{schedule: cosine, warmup_steps: 20, total_steps: 400}``.

    Raises:
        ClockError: it states none; every problem is named with its key.
    """
    if problems := schedule_problems(mapping):
        raise ClockError("clock: " + "; ".join(f"{key}: {problem}" for key, problem in problems))
    keys = _TAKES[mapping["schedule"]]
    return Schedule(
        mapping["schedule"], tuple((key, mapping.get(key, kind.default)) for key, kind in keys.items())
    )
