"""Standard errors on the page of a sampled scan.

Its script has no groups of weights to leave out, so they are worked out here, at some steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.reporting.live import offered, targets_ahead
from hubextrap.statistics import backtest_table, is_rounded
from hubextrap.statistics.calibration import expectations_of_last

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubextrap.clocks import Clock
    from hubextrap.reporting.live import StandardErrors
    from hubextrap.scans import Scan
    from hubextrap.statistics import Backtest, BacktestCandidate, GramTable

MOST_TARGETS_OF_ORIGIN = 12
"""Rehearsals of one method from one checkpoint whose standard errors are written into the page."""
NOTE = (
    "Standard errors were worked out at some steps; at a step between two of them, the one shown lies on the "
    "line between theirs. How the checkpoints are mixed, and how far the prediction lies, is of the "
    "sample too."
)


def standard_errors(
    scan: Scan, clocks: Sequence[Clock], backtest: Backtest
) -> dict[str, list[list[StandardErrors]]]:
    """Of each method that the page offers, clock by clock.

    Args:
        clocks: as the page offers them; the backtest went by one of them.
    """
    found: dict[str, list[list[StandardErrors]]] = {candidate.name: [] for candidate in offered(backtest)}
    rounded = is_rounded(scan.gram_table, scan.dtypes)
    for clock in clocks:
        table, rehearsed = replace(scan.gram_table, clock=clock), backtest
        if clock is not backtest.clock:
            rehearsed = backtest_table(table, offered(backtest), dtypes=scan.dtypes)
        for candidate in offered(backtest):
            rows = (*_rehearsed(candidate, rehearsed), *_ahead(candidate, table, rounded))
            found[candidate.name].append(list(rows))
    return found


def _rehearsed(candidate: BacktestCandidate, backtest: Backtest) -> Iterator[StandardErrors]:
    by_origin: dict[int, list[StandardErrors]] = {}
    for row in backtest.rows:
        if row.method == candidate.name:
            both = _short(row.expected_error_stderr), _short(row.error_stderr)
            by_origin.setdefault(row.last_step, []).append((row.last_step, row.target_step, *both))
    for rows in by_origin.values():
        places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_TARGETS_OF_ORIGIN)).round().astype(int)
        yield from (rows[place] for place in places)


def _ahead(candidate: BacktestCandidate, table: GramTable, rounded: bool) -> Iterator[StandardErrors]:
    seen, targets = targets_ahead(table, table.clock)
    times = [time for _, time in targets]
    found = expectations_of_last(candidate.rules, seen, times, rounded)
    for (step, _), expected in zip(targets, found, strict=True):
        if expected.stderr is not None:
            yield table.steps[-1], step, _short(expected.stderr), None


def _short(stderr: float | None) -> float | None:
    return None if stderr is None else float(f"{stderr:.3g}")
