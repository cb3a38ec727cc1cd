"""What the page computes with: a small Gram table, clocks, methods and recipes, as one JSON object.

Its script does in the browser what `statistics.calibration` does here, for any target: see predicting.js.
"""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hubextrap.errors import ClockError
from hubextrap.foreign_text import terminal_line
from hubextrap.methods import calibrating, lines, rehearsal, subspace
from hubextrap.reporting.plain import what_it_does
from hubextrap.reporting.recipe_text import command_name, recipe_beginning
from hubextrap.statistics import (
    GramTable,
    candidates,
    expect_of_last,
    is_rounded,
    judge_run,
    plain_name,
    verdict,
    wording,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hubextrap.clocks import Clock, ClockChoice
    from hubextrap.reporting.accuracy import Accuracy
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest, BacktestCandidate, RunVerdict

MOST_CHECKPOINTS = 100
"""Of more, the page takes as many, at equal distances."""
MOST_TARGETS = 6000
"""Times on a clock that are written into the page, over all origins."""
AHEAD = 2.0
"""How far behind an origin the slider goes, in units of the way observed there."""
GRID_OF_FIXED = 12
"""Targets at which a method that the script does not know is worked out beforehand."""
StandardErrors: TypeAlias = tuple[int, int, float | None, float | None]
"""(origin's step, target step, that of the expected error, that of the error found)."""
LIVE = {"average", "calibrated", "ema", "late_lines", "least_squares", "low_rank", "persistence", "two_point"}


@dataclass(frozen=True, slots=True)
class SmallTable:
    """A Gram table that fits into a page."""

    table: GramTable
    notes: tuple[str, ...]
    """What had to be left out or taken together."""


def small_table(table: GramTable, room: int) -> SmallTable:
    """The table, in so many bytes of text.

    Tensors that moved least are taken as one where not all fit: what follows from the sum over all tensors
    stays exact, and methods that are fitted to each tensor hardly notice.
    """
    notes = []
    if table.sample is not None:  # the groups of a sample are for `reporting.margins`
        table = replace(table, sample=None)
    count = len(table.steps)
    if count > MOST_CHECKPOINTS:
        places = np.unique(np.linspace(0, count - 1, MOST_CHECKPOINTS).round().astype(int))
        table = replace(
            table,
            steps=tuple(table.steps[place] for place in places),
            gram=table.gram[:, places[:, None], places],
        )
        notes.append(f"The calculation below takes {len(places)} of the {count} checkpoints.")
        count = len(places)
    most = max(2, int(room * 3 / 4 / 8) // (count * (count + 1) // 2))
    if len(table.tensors) > most:
        kept = table.most_moved(most - 1)
        rest = table.total() - kept.total()
        share = max(0.0, rest[-1, -1]) / max(table.total()[-1, -1], np.finfo(float).tiny)
        notes.append(
            f"The calculation below takes the {len(table.tensors) - most + 1} tensors that moved least as "
            f"one, {share:.1%} of the motion, so that the page stays small."
        )
        table = replace(
            kept,
            tensors=(*kept.tensors, "all others"),
            elements=np.append(kept.elements, table.elements.sum() - kept.elements.sum()),
            gram=np.concatenate([kept.gram, rest[None]]),
        )
    return SmallTable(table, tuple(notes))


def live_data(
    scan: Scan,
    small: SmallTable,
    clocks: Sequence[tuple[Clock, ClockChoice | None]],
    backtest: Backtest,
    accuracies: Sequence[Accuracy],
    judged: RunVerdict,
    tasks: Sequence[str],
    stderrs: Mapping[str, list[list[StandardErrors]]] | None = None,
) -> dict[str, Any]:
    """All of it as JSON values.

    Args:
        clocks: the one to begin with first; with what a recipe says to have it, None for nothing.
        judged: what the page begins with.
        tasks: what was evaluated.
        stderrs: of a sampled scan, those of each method offered, clock by clock, see `reporting.margins`.
    """
    table, steps = small.table, small.table.steps
    rounded = is_rounded(scan.gram_table, scan.dtypes)
    places = np.tril_indices(len(steps))
    packed = np.ascontiguousarray(table.gram[:, places[0], places[1]], dtype="<f8").tobytes()
    methods = [_method(candidate, table, clocks, backtest, rounded) for candidate in offered(backtest)]
    run = command_name(scan)
    if stderrs is not None and scan.weights is not None:
        size = scan.weights.size
        run += f" --sample {size}"
        fits = [any(rule.needs_gram_matrix for rule in one.rules) for one in offered(backtest)]
        methods = [
            method | {"stderrs": stderrs[method["name"]], "fit": size * fitted}
            for method, fitted in zip(methods, fits, strict=True)
        ]
    names = [method["name"] for method in methods]
    return {
        "steps": steps,
        "tensors": len(table.tensors),
        "gram": base64.b64encode(packed).decode(),
        "rounded": rounded,
        "near": [_near(backtest, step) for step in steps],
        "notes": small.notes,
        "constants": _constants(),
        "clocks": [_clock_data(clock, choice, scan, steps) for clock, choice in clocks],
        "methods": methods,
        "run": terminal_line(run),
        "tasks": terminal_line(shlex.quote(",".join(tasks))) if tasks else "",
        "scores": [_scores(accuracy) for accuracy in accuracies],
        "start": {
            "method": names.index(judged.method) if judged.method in names else 0,
            "target": judged.reach_step or steps[-1] + max(1, (steps[-1] - steps[0]) // 2),
        },
    }


def _constants() -> dict[str, Any]:
    """Those of the modules that the script follows: there is one place for each."""
    return {
        "horizon_width": rehearsal.HORIZON_WIDTH,
        "farthest": rehearsal.FARTHEST,
        "signal_rank": rehearsal.SIGNAL_RANK,
        "rounded": rehearsal.ROUNDED,
        "windows": calibrating.WINDOWS,
        "ridge": calibrating.RIDGE,
        "late": lines.LATE,
        "same_length": lines.SAME_LENGTH,
        "grid": lines.GRID,
        "negligible": subspace.NEGLIGIBLE,
        "promising": verdict.PROMISING,
        "lost": verdict.LOST,
        "trusted_horizon": verdict.HORIZONS[-1],
        "too_few": wording.TOO_FEW,
    }


def _near(backtest: Backtest, last: int) -> int:
    """How many rehearsals a verdict at step ``last`` would have had to judge by."""
    until = replace(backtest, rows=tuple(row for row in backtest.rows if row.target_step <= last))
    shared = next(iter(until.shared_rows().values()), [])
    return sum(row.horizon <= verdict.HORIZONS[-1] for row in shared)


def offered(backtest: Backtest) -> list[BacktestCandidate]:
    """The best first, as far as they were rehearsed; not the last checkpoint itself."""
    order = {entry.method: place for place, entry in enumerate(verdict.horizon_means(backtest))}
    known = [candidate for candidate in candidates() if candidate.name != "persistence"]
    return sorted(known, key=lambda candidate: order.get(candidate.name, len(order)))


def _method(
    candidate: BacktestCandidate,
    table: GramTable,
    clocks: Sequence[tuple[Clock, ClockChoice | None]],
    backtest: Backtest,
    rounded: bool,
) -> dict[str, Any]:
    (rule,) = candidate.rules
    alone = judge_run(
        replace(backtest, rows=tuple(row for row in backtest.rows if row.method == candidate.name))
    )
    said: dict[str, Any] = {
        "name": candidate.name,
        "title": plain_name(candidate.name),
        "does": what_it_does(candidate.name),
        "method": rule.method,
        "parameters": dict(rule.parameters),
        "damping": rule.damping,
        "reach": alone.reach,
    }
    if rule.method not in LIVE:
        said["fixed"] = [list(_worked_out(candidate, table, clock, backtest, rounded)) for clock, _ in clocks]
    return said


def _worked_out(
    candidate: BacktestCandidate, table: GramTable, clock: Clock, backtest: Backtest, rounded: bool
) -> Iterator[tuple[int, int, float | None, float | None]]:
    """(origin, target step, expected error, error found) of a method that the script does not know."""
    places = {step: place for place, step in enumerate(table.steps)}
    for row in backtest.rows if clock is backtest.clock else ():
        if row.method == candidate.name and {row.last_step, row.target_step} <= places.keys():
            yield places[row.last_step], row.target_step, row.expected_error, row.error
    newest = len(table.steps) - 1
    seen, targets = targets_ahead(table, clock)
    for step, time in targets:
        expected = expect_of_last(candidate.rules, seen, time, rounded)
        yield newest, step, expected.relative_error, None


def targets_ahead(table: GramTable, clock: Clock) -> tuple[GramTable, list[tuple[int, float]]]:
    """The table on that clock, and `GRID_OF_FIXED` steps behind the newest with their times, as far as the
    slider goes."""
    newest = len(table.steps) - 1
    seen = replace(table, clock=clock).seen_at(newest)
    targets = list(_targets(seen.clock, seen.times[-1], table.steps, newest))
    places = np.linspace(0, max(0, len(targets) - 1), GRID_OF_FIXED).round().astype(int)
    return seen, [targets[place] for place in np.unique(places)] if targets else []


def _farthest(steps: Sequence[int], origin: int) -> int:
    return max(steps[-1], round(steps[origin] + AHEAD * (steps[origin] - steps[0])))


def _clock_data(clock: Clock, choice: ClockChoice | None, scan: Scan, steps: Sequence[int]) -> dict[str, Any]:
    """Times as they were known at each origin; by steps, they are the steps."""
    count = len(steps)
    by_steps = clock.name == "steps"
    origins: list[dict[str, Any] | None] = [None]
    for origin in range(1, count):
        seen, known = steps[: origin + 1], clock.known_at(steps[origin])
        try:
            times = known.times(seen)
        except ClockError:
            origins.append(None)
            continue
        said: dict[str, Any] = {"times": times, "farthest": _farthest(steps, origin)}
        if not by_steps:
            said["targets"] = list(_targets(known, times[-1], steps, origin))
        said["recipe"] = recipe_beginning(scan, steps[origin], choice)
        origins.append(said)
    title = "training steps" if by_steps else "the learning rate, in full-rate steps"
    return {"name": clock.name, "title": title, "origins": origins}


def _targets(known: Clock, now: float, steps: Sequence[int], origin: int) -> Iterator[tuple[int, float]]:
    """Steps to come with their times, as far as those were known."""
    spans = sum(_farthest(steps, one) - steps[one] for one in range(1, len(steps)))
    stride = max(1, -(-spans // MOST_TARGETS))
    wanted = set(range(steps[origin] + stride, _farthest(steps, origin) + 1, stride))
    for step in sorted(wanted | set(steps[origin + 1 :])):
        try:
            time = known.time_of(step)
        except ClockError:
            return
        if time > now:
            yield step, time


def _scores(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "title": terminal_line(accuracy.title),
        "points": [
            {
                "label": terminal_line(point.label),
                "step": point.step,
                "value": point.value,
                "margin": 1.96 * (point.stderr or 0.0),
                "predicted": point.is_prediction,
            }
            for point in (*accuracy.observed, *accuracy.predicted)
            if np.isfinite(point.value)
        ],
    }
