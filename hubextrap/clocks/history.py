"""The learning rates that a run has logged, from transformers' trainer_state.json or from a file of rates."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hubextrap.clocks.schedules import LARGEST_STEP
from hubextrap.containment import read_named
from hubextrap.errors import ClockError, CorruptFile
from hubextrap.foreign_data import parse_json, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

FILE_LIMIT = 64_000_000
"""Bytes of a file that rates are read from: losses and rewards of a long run stand in it too."""
LARGEST_RATE = 1e6
_NOISE = 1e-6
_STEP_NAMES = ("step", "train/global_step", "global_step", "_step")
_RATE_NAMES = ("learning_rate", "train/learning_rate", "lr", "train/lr", "actor/lr")


@dataclass(frozen=True, slots=True)
class RateHistory:
    """The rate at some steps, in order; in between it is interpolated.

    What stands at step s is the rate of the update that led there, or of the next one: newer transformers log
    the former, older ones the latter.
    """

    steps: tuple[int, ...]
    rates: tuple[float, ...]
    max_steps: int | None = None
    """The step at which the run was to end."""
    source: str = "history"
    """Where it is from, for messages."""
    stated: bool = False
    """Whether a user says so, of rates to come as well, instead of a trainer that has logged them."""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.rates):
            raise ClockError(
                f"{self.source}: {len(self.steps)} steps and {len(self.rates)} learning rates; give one "
                "rate per step"
            )
        previous = -1
        for step, rate in zip(self.steps, self.rates, strict=True):
            if problem := _step_problem(step) or _rate_problem(rate):
                raise ClockError(f"{self.source}: {problem}")
            if step <= previous:
                raise ClockError(
                    f"{self.source}: step {step} comes after step {previous}; put the steps in order"
                )
            previous = step
        if self.max_steps is not None and (problem := _step_problem(self.max_steps)):
            raise ClockError(f"{self.source}: max_steps: {problem}")
        if self.rates and not any(self.rates):
            raise ClockError(f"{self.source}: the learning rate is 0 at every step; nothing was trained")

    @property
    def changes(self) -> bool:
        """Whether the rate really changed, by more than its digits did."""
        return bool(self.rates) and max(self.rates) - min(self.rates) > _NOISE * max(self.rates)

    def up_to(self, step: int) -> RateHistory:
        """What was logged up to a step."""
        if not self.steps or step >= self.steps[-1]:
            return self
        count = sum(each <= step for each in self.steps)
        while count and not any(self.rates[:count]):  # only a warm-up's first rate, 0: nothing was trained
            count = 0
        return replace(self, steps=self.steps[:count], rates=self.rates[:count])

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "rates": list(self.rates),
            "max_steps": self.max_steps,
            "source": self.source,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> RateHistory:
        """What `as_json` gave.

        Raises:
            CorruptFile: it is something else.
        """
        try:
            if not isinstance(value, dict) or set(value) != {"steps", "rates", "max_steps", "source"}:
                raise ClockError("its keys are not steps, rates, max_steps and source")
            steps, rates, source = value["steps"], value["rates"], value["source"]
            if not isinstance(steps, list) or not isinstance(rates, list) or not isinstance(source, str):
                raise ClockError("steps and rates must be lists, and source must be text")
            return cls(tuple(steps), tuple(map(_as_float, rates)), value["max_steps"], source)
        except ClockError as error:
            raise CorruptFile(
                f"{where}: this is not a history of learning rates ({error}); create it again", file=where
            ) from None


def _step_problem(step: Any) -> str | None:
    if not isinstance(step, int) or isinstance(step, bool):
        return f"the step {shorten(repr(step), 40)} is not a whole number"
    return (
        None
        if 0 <= step <= LARGEST_STEP
        else f"the step {shorten(str(step), 40)} is not between 0 and {LARGEST_STEP}"
    )


def _rate_problem(rate: Any) -> str | None:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        return f"the learning rate {shorten(repr(rate), 40)} is not a number"
    if not 0 <= rate <= LARGEST_RATE:  # NaN too
        return f"the learning rate {shorten(repr(rate), 40)} is not between 0 and {LARGEST_RATE:g}"
    return None


def _as_float(rate: Any) -> Any:
    """A rate as a float, where it is a fitting number; what is none is refused later."""
    return rate if _rate_problem(rate) else float(rate)


def read_trainer_state(content: bytes, name: str, step: int | None = None) -> RateHistory:
    """The rates in the ``log_history`` of transformers' trainer_state.json; none are an empty history.

    Of a step that is logged twice the last record counts, and so it does of those that a resumed run repeats.

    Args:
        name: of the file, for messages.
        step: of the checkpoint beside which it lies.

    Raises:
        CorruptFile: it is no such file, or of another step; the message names the record.
    """
    remedy = "download it again, or choose another clock (steps, a schedule, a file of rates)"
    state = parse_json(content, name, nan=True, limit=FILE_LIMIT, remedy=remedy)
    history = _history_of_state(state, name, remedy)
    check_state_step(state, name, step)
    return history


def check_state_step(state: Mapping[str, Any], name: str, step: int | None) -> None:
    """Refuse a trainer's state of another step than the checkpoint beside which it lies.

    Raises:
        CorruptFile: says so.
    """
    reached = state.get("global_step")
    if step is not None and reached is not None and reached != step:
        raise CorruptFile(
            f"{name}: this file is from step {shorten(repr(reached), 40)}, but its checkpoint is "
            f"step {step}; if the names do not count steps, set trajectory.steps.scale",
            file=name,
        )


def _history_of_state(state: Any, name: str, remedy: str) -> RateHistory:
    def wrong(what: str) -> CorruptFile:
        return CorruptFile(f"{name}: {what}; {remedy}", file=name)

    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise wrong("it has no list log_history")
    records = []
    for number, record in enumerate(state["log_history"], 1):
        if not isinstance(record, dict):
            raise wrong(f"log_history, record {number}: it is not a mapping")
        if record.get("learning_rate") is None:  # an evaluation's, or a summary's
            continue
        if problem := _step_problem(record.get("step")) or _rate_problem(record["learning_rate"]):
            raise wrong(f"log_history, record {number}: {problem}")
        records.append((record["step"], float(record["learning_rate"])))
    most = state.get("max_steps")
    if most is not None and (problem := _step_problem(most)) and most != -1:
        raise wrong(f"max_steps: {problem}")
    if not any(rate for _, rate in records):  # of a warm-up's first update alone, 0
        records = []
    try:
        steps, rates = _last_records(records, name)
        return RateHistory(steps, rates, most if most and most > 0 else None, name)
    except ClockError as error:
        raise CorruptFile(f"{error}; {remedy}", file=name) from None


def _last_records(
    records: Iterable[tuple[int, float]], name: str
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """In order of the steps. Where the counter goes back, what was logged from there on was undone.

    Raises:
        ClockError: it goes back so often that no run was resumed.
    """
    kept: list[tuple[int, float]] = []
    count = back = 0
    for step, rate in records:
        count += 1
        back += bool(kept) and step < kept[-1][0]
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((step, rate))
    if back > max(3, count // 4):
        raise ClockError(f"{name}: the steps of its learning rates are not in order; sort them", file=name)
    return tuple(step for step, _ in kept), tuple(rate for _, rate in kept)


def read_rate_file(path: Path | str) -> RateHistory:
    """The rates in a file that a user gives: CSV, JSON lines, or a trainer_state.json.

    Raises:
        ClockError: it cannot be read, or is none of these; the message names the line.
    """
    name, remedy = str(path), "correct it"
    try:
        content = read_named(path, FILE_LIMIT)
    except OSError as error:
        what = error.strerror or str(error)
        raise ClockError(f"{name}: the file of learning rates cannot be read ({what})", file=name) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ClockError(f"{name}, line {line}: not UTF-8; save it as UTF-8", file=name) from None
    if '"log_history"' in text and text.lstrip()[:1] == "{":
        try:
            state = parse_json(text, name, error=ClockError, nan=True, limit=FILE_LIMIT, remedy=remedy)
            history = _history_of_state(state, name, remedy)
        except CorruptFile as error:
            raise ClockError(str(error), file=name) from None
    else:
        lines = _json_lines if text.lstrip()[:1] == "{" else _csv_lines
        steps, rates = _last_records(_checked(lines(text, name), name), name)
        history = RateHistory(steps, rates, None, name, stated=True)
    if not history.steps:
        raise ClockError(f"{name}: there is no learning rate in it; {_EXPECTED}", file=name)
    return history


_EXPECTED = "write CSV with the columns step and learning_rate, or JSON lines of these"


def _checked(lines: Iterator[tuple[int, Any, Any]], name: str) -> Iterator[tuple[int, float]]:
    for line, step, rate in lines:
        if problem := _step_problem(step) or _rate_problem(rate):
            raise ClockError(f"{name}, line {line}: {problem}", file=name)
        yield step, float(rate)


def _column(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    known = set(names)
    return next((name for name in wanted if name in known), None)


def _json_lines(text: str, name: str) -> Iterator[tuple[int, Any, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        record = parse_json(line.strip(), where, error=ClockError, nan=True, remedy="correct it", file=name)
        if not isinstance(record, dict):
            raise ClockError(f"{where}: it is not a mapping; {_EXPECTED}", file=name)
        rate = _column(record, _RATE_NAMES)
        if rate is None or record[rate] is None:
            continue
        step = _column(record, _STEP_NAMES)
        if step is None:
            raise ClockError(f"{where}: there is a learning rate without a step; {_EXPECTED}", file=name)
        at = record[step]  # pandas writes 10.0
        yield number, int(at) if isinstance(at, float) and at.is_integer() else at, record[rate]


def _csv_lines(text: str, name: str) -> Iterator[tuple[int, Any, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = cells
                step, rate = _column(header, _STEP_NAMES), _column(header, _RATE_NAMES)
                if step is None or rate is None:
                    where = f"{name}, line {rows.line_num}"
                    raise ClockError(
                        f"{where}: no header with step and learning_rate; {_EXPECTED}", file=name
                    )
                if (
                    twice := next((name for name in (step, rate) if header.count(name) > 1), None)
                ) is not None:
                    where = f"{name}, line {rows.line_num}"
                    raise ClockError(f"{where}: two columns are called {twice}; keep one", file=name)
                at, of = header.index(step), header.index(rate)
                continue
            if len(cells) != len(header):
                what = f"it has {len(cells)} columns, but the header has {len(header)}"
                raise ClockError(f"{name}, line {rows.line_num}: {what}", file=name)
            if cells[of]:  # wandb leaves it empty where a row is of something else
                yield rows.line_num, _whole_of(cells[at]), _number_of(cells[of])
    except csv.Error as error:
        raise ClockError(f"{name}, line {rows.line_num}: {error}; {_EXPECTED}", file=name) from None


def _whole_of(text: str) -> Any:
    """The step that a cell holds, also as 20.0; the text itself where it holds none."""
    number = _number_of(text)
    return int(number) if isinstance(number, float) and number.is_integer() else text


def _number_of(text: str) -> Any:
    try:
        number = float(text) if len(text) <= 40 and "_" not in text else text
    except ValueError:
        return text
    return number if isinstance(number, str) or math.isfinite(number) else text
