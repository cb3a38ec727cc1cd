"""Every rule at every origin of a trajectory, held against what came later: from a Gram table alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.errors import MethodError
from hubextrap.methods import (
    Rule,
    coefficients,
    find_method,
    method_names,
    rounding_share,
    signal,
    without_rounding,
)
from hubextrap.statistics.calibration import expect, is_rounded, pasts, relative, summed_squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.statistics.table import GramTable


@dataclass(frozen=True, slots=True)
class Candidate:
    """Rules under a name."""

    name: str
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, method: str, damping: float | str = 1.0, **parameters: object) -> Candidate:
        """One method for all tensors, named as its parameters say: ``two_point(base_step=auto)``."""
        said = parameters if damping == 1.0 else {**parameters, "damping": damping}
        words = ", ".join(f"{key}={str(value).lower()}" for key, value in said.items())
        return cls(f"{method}({words})" if words else method, (Rule(("*",), method, parameters, damping),))  # type: ignore[arg-type]


DEFAULT_RULE = Candidate.of("least_squares", window="half", through_last=True)
"""The fixed rule to beat: it keeps the early transient out, and starts at the last checkpoint."""
VARIANTS = (
    Candidate.of("two_point", base_step="auto"),
    DEFAULT_RULE,
    Candidate.of("least_squares", "auto", window="half", through_last=True),
)


@dataclass(frozen=True, slots=True)
class BacktestRow:
    """One prediction that could be checked. Errors are relative: 1 is the last checkpoint's own."""

    method: str
    last_step: int
    target_step: int
    horizon: float
    """(target − last)/(last − first)."""
    relative_error: float
    expected_relative_error: float | None
    """What the checkpoints up to ``last_step`` alone let expect; None when they could not say."""
    signal_error: float | None = None
    """The same along the two leading directions of motion a tensor; None where rounding does not matter."""
    expected_signal_error: float | None = None

    @property
    def error(self) -> float:
        """The one to judge by: where rounding to 16 bits drowns the updates, the signal's."""
        return self.relative_error if self.signal_error is None else self.signal_error

    @property
    def expected_error(self) -> float | None:
        return self.expected_relative_error if self.signal_error is None else self.expected_signal_error

    @property
    def skill(self) -> float:
        """1 − error: above 0 is better than doing nothing."""
        return 1.0 - self.error


@dataclass(frozen=True, slots=True)
class Backtest:
    """All rows, by method, then last step, then target step."""

    steps: tuple[int, ...]
    rows: tuple[BacktestRow, ...]
    rounding_share: float
    """Share of white noise in the motion between neighbouring checkpoints."""
    rounded: bool
    """Whether that is so much that the signal's errors are the ones to judge by."""
    same_weights: tuple[tuple[int, ...], ...]
    """Steps whose checkpoints do not differ, see `GramTable.same_weights`."""
    base_step: int | None
    """Where a line through two checkpoints should begin, to reach half as far again as was observed."""

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows as JSON values; the signal's errors are in them where rounding matters."""
        signals = ("signal_error", "expected_signal_error")
        return [
            {
                key: value
                for key, value in (asdict(row) | {"skill": row.skill}).items()
                if self.rounded or key not in signals
            }
            for row in self.rows
        ]

    def shared_rows(self) -> dict[str, list[BacktestRow]]:
        """By method, the rows of the (last, target) pairs that every method could predict."""
        by_method: dict[str, dict[tuple[int, int], BacktestRow]] = {name: {} for name in self.methods}
        for row in self.rows:
            by_method[row.method][row.last_step, row.target_step] = row
        pairs = set.intersection(*(set(rows) for rows in by_method.values())) if by_method else set()
        return {name: [rows[pair] for pair in sorted(pairs)] for name, rows in by_method.items()}


def candidates() -> tuple[Candidate, ...]:
    """Every method with its default parameters that can be called so, and the variants worth knowing."""
    plain = [
        Candidate.of(name)
        for name in method_names()
        if not any(parameter.required for parameter in find_method(name).parameters)
    ]
    return (*plain, *VARIANTS)


def backtest_table(
    table: GramTable, tried: Sequence[Candidate] | None = None, *, dtypes: Iterable[str] = ()
) -> Backtest:
    """Predict every observed checkpoint from every earlier one that has a past, by every candidate.

    Nothing is read but the table, and nothing behind an origin enters its coefficients or expectations.
    Where a candidate cannot serve, it has no row.

    Args:
        tried: `candidates` when None.
        dtypes: in which the checkpoints are stored, as safetensors calls them; see `is_rounded`.

    Raises:
        MethodError: a candidate's method is not known, or not with these parameters.
    """
    tried = candidates() if tried is None else tried
    rounded = is_rounded(table, dtypes)
    steps, count = table.steps, len(table.steps)
    rows: list[BacktestRow] = []
    for candidate in tried:
        parts = pasts(candidate.rules, table)
        hindsight = [signal(part.gram) for part in parts] if rounded else []
        for last in range(1, count - 1):
            fitted = [without_rounding(part.gram[:, : last + 1, : last + 1]) for part in parts]
            for target in range(last + 1, count):
                motion = np.zeros(count)
                motion[target], motion[last] = 1.0, -1.0
                try:
                    errors = [
                        (part.displacement(last, steps[target], own) - motion)[:, None]
                        for part, own in zip(parts, fitted, strict=True)
                    ]
                except MethodError:
                    continue
                found = _found(errors, motion, [part.gram for part in parts])
                if found is None:
                    continue
                expected = expect(parts, last, steps[target], rounded, fitted)
                rows.append(
                    BacktestRow(
                        candidate.name,
                        steps[last],
                        steps[target],
                        (steps[target] - steps[last]) / (steps[last] - steps[0]),
                        found,
                        expected.total,
                        _found(errors, motion, hindsight) if rounded else None,
                        expected.signal,
                    )
                )
    share, same = float(rounding_share(table.total())), table.same_weights()
    return Backtest(steps, tuple(rows), share, rounded, same, _best_base(table))


def _best_base(table: GramTable) -> int | None:
    steps = table.steps
    target = steps[-1] + (steps[-1] - steps[0]) / 2
    try:
        found = coefficients("two_point", steps, target, {"base_step": "auto"}, gram_matrix=table.total())
    except MethodError:
        return None
    return steps[int(np.flatnonzero(found)[0])]


def _found(
    errors: Sequence[NDArray[np.float64]], motion: NDArray[np.float64], grams: Sequence[NDArray[np.float64]]
) -> float | None:
    """The relative error over all tensors; None when nothing moved."""
    total = sum(summed_squares(vectors, gram)[0] for vectors, gram in zip(errors, grams, strict=True))
    real = sum(summed_squares(motion[None, None], gram)[0] for gram in grams)
    return float(relative(np.array(total), np.array(real))) if real > 0 else None
