"""Every rule at every origin of a trajectory, held against what came later: from a Gram table alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hubextrap.clocks import STEPS
from hubextrap.errors import MethodError
from hubextrap.methods import (
    Rule,
    coefficients,
    find_method,
    method_names,
    on_grid,
    rehearse,
    rounding_share,
)
from hubextrap.methods.rehearsal import most_rehearsals
from hubextrap.methods.rules import FirstMatch
from hubextrap.notebooks import counted, one_line, shown_by, steps_in_words
from hubextrap.statistics.calibration import (
    FIT_COPIES,
    FIT_MEMORY,
    Expectation,
    expectation,
    influences_on,
    is_rounded,
    rehearsed_squares,
    relative,
)
from hubextrap.statistics.jackknife import (
    MOMENTS,
    Influence,
    Influences,
    add_moments,
    bytes_of_sampled,
    rounding_share_stderr,
    stderrs,
    telling_parts,
)
from hubextrap.statistics.measures import Spectra
from hubextrap.statistics.origins import Pair, pairs_of, predicted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubextrap.clocks import Clock
    from hubextrap.statistics.past import Past
    from hubextrap.statistics.table import GramTable


@dataclass(frozen=True, slots=True)
class BacktestCandidate:
    """Rules under a name."""

    name: str
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, method: str, damping: float | str = 1.0, **parameters: object) -> BacktestCandidate:
        """One method for all tensors, named as its parameters say: ``two_point(base_step=auto)``."""
        said = parameters if damping == 1.0 else {**parameters, "damping": damping}
        words = ", ".join(f"{key}={str(value).lower()}" for key, value in said.items())
        return cls(f"{method}({words})" if words else method, (Rule(("*",), method, parameters, damping),))  # type: ignore[arg-type]


VARIANTS = (
    BacktestCandidate.of("two_point", base_step="auto"),
    BacktestCandidate.of("least_squares", window="half", through_last=True),
    BacktestCandidate.of("least_squares", "auto", window="half", through_last=True),
)

BRIEF_PAIRS, BRIEF_TENSORS, BRIEF_CHECKPOINTS = 150, 64, 100
"""What a `brief_backtest` takes at most: seconds, where a whole one takes minutes."""
_BRIEF_WORK = 300_000
"""Pairs times checkpoints squared: a method that is fitted to the past takes so much longer for each."""


KEPT_MEMORY = 16 * 2**20
"""Bytes of what candidates ask of the same Gram matrices, kept from one to the next."""
_FOUND, _EXPECTED = ("relative_error", "signal_error"), ("expected_relative_error", "expected_signal_error")


@dataclass(frozen=True, slots=True)
class BacktestRow:
    """One prediction that could be checked. Errors are relative: 1 is the last checkpoint's own."""

    method: str
    last_step: int
    target_step: int
    horizon: float
    """(target − last)/(last − first) on the clock as it was known at the last step."""
    relative_error: float
    expected_relative_error: float | None
    """The error forecast from the checkpoints up to ``last_step`` alone; None when they could not say."""
    signal_error: float | None = None
    """The same along each tensor's two leading directions of motion; None where rounding does not matter."""
    expected_signal_error: float | None = None
    relative_error_stderr: float | None = None
    """Standard errors of the four, as far as only a sample of the weights was read; None where all were."""
    expected_relative_error_stderr: float | None = None
    signal_error_stderr: float | None = None
    expected_signal_error_stderr: float | None = None

    @property
    def error(self) -> float:
        """The one to judge by: where rounding to 16 bits is much of the motion, the signal's."""
        return self.relative_error if self.signal_error is None else self.signal_error

    @property
    def expected_error(self) -> float | None:
        return self.expected_relative_error if self.signal_error is None else self.expected_signal_error

    @property
    def error_stderr(self) -> float | None:
        return self.relative_error_stderr if self.signal_error is None else self.signal_error_stderr

    @property
    def expected_error_stderr(self) -> float | None:
        total, signal = self.expected_relative_error_stderr, self.expected_signal_error_stderr
        return total if self.signal_error is None else signal

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
    clock: Clock = STEPS
    """By which horizons are measured."""
    unforeseen: tuple[int, ...] = ()
    """Last steps from which some target's time could not be told, so that there is no row of it."""
    sampled: int | None = None
    """So many weights of each tensor were read at most; None for all."""
    rounding_share_stderr: float | None = None

    def __repr__(self) -> str:
        checkpoints, methods = counted(len(self.steps), "checkpoint"), counted(len(self.methods), "method")
        return one_line(
            self, checkpoints, steps_in_words(self.steps), methods, counted(len(self.rows), "prediction")
        )

    def _repr_html_(self) -> str:
        return shown_by("hubextrap.statistics.backtest_view:as_html", self)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def as_rows(self) -> list[dict[str, Any]]:
        """The rows as JSON values: the signal's errors are in them where rounding matters, standard errors
        where weights were sampled."""
        both = tuple(zip(_FOUND, _EXPECTED, strict=True))
        left_out: tuple[str, ...] = () if self.rounded else both[1]
        for names in both if self.sampled is None else both[1:] * (not self.rounded):
            left_out += tuple(f"{name}_stderr" for name in names)
        clock = {} if self.clock.name == STEPS.name else {"clock": self.clock.in_words()}
        rows = [asdict(row) | {"skill": row.skill} | clock for row in self.rows]
        return [{key: value for key, value in row.items() if key not in left_out} for row in rows]

    def shared_rows(self) -> dict[str, list[BacktestRow]]:
        """By method, the rows of the (last, target) pairs that every method could predict."""
        by_method: dict[str, dict[tuple[int, int], BacktestRow]] = {name: {} for name in self.methods}
        for row in self.rows:
            by_method[row.method][row.last_step, row.target_step] = row
        pairs = set.intersection(*(set(rows) for rows in by_method.values())) if by_method else set()
        return {name: [rows[pair] for pair in sorted(pairs)] for name, rows in by_method.items()}


def candidates() -> tuple[BacktestCandidate, ...]:
    """Every method with its default parameters that can be called so, and the variants worth knowing."""
    plain = [
        BacktestCandidate.of(name)
        for name in method_names()
        if not any(parameter.required for parameter in find_method(name).parameters)
    ]
    return (*plain, *VARIANTS)


def backtest_table(
    table: GramTable, tried: Sequence[BacktestCandidate] | None = None, *, dtypes: Iterable[str] = ()
) -> Backtest:
    """Predict every observed checkpoint from every earlier one that has a past, by every candidate.

    Nothing is read but the table, and nothing behind an origin enters its coefficients or expectations: a
    target's time is what the clock said of it then. Where a candidate cannot serve, it has no row.

    Args:
        tried: `candidates` when None.
        dtypes: in which the checkpoints are stored, as safetensors calls them; see `is_rounded`.

    Raises:
        MethodError: a candidate's method is not known, or not with these parameters.
    """
    tried = candidates() if tried is None else tried
    rounded = is_rounded(table, dtypes)
    foreseen, unforeseen = pairs_of(table)
    pairs = [replace(pair, rehearsals=rehearse(pair.times, pair.time)) for pair in foreseen]
    spectra = Spectra(KEPT_MEMORY)
    rows = [row for candidate in tried for row in _rows_of(candidate, table, pairs, rounded, spectra)]
    return _backtest(table, rows, rounded, unforeseen, base_step=_best_base(table))


def _backtest(
    table: GramTable,
    rows: Iterable[BacktestRow],
    rounded: bool,
    unforeseen: tuple[int, ...],
    base_step: int | None = None,
) -> Backtest:
    """Rows with what is said of the whole table."""
    sampled = table.sample is not None
    return Backtest(
        table.steps,
        tuple(rows),
        float(rounding_share(table.total())),
        rounded,
        table.same_weights(),
        base_step,
        table.clock,
        unforeseen,
        table.sampled,
        rounding_share_stderr(table) if sampled else None,
    )


def brief_backtest(rules: Sequence[Rule], table: GramTable, rounded: bool, farthest: float) -> Backtest:
    """What one recipe's rules came to up to a horizon, in bounded time and without expected errors.

    The pairs are those by which `backtest_table` compares all methods: both say the same of one. Of many
    pairs, `BRIEF_PAIRS` or fewer are taken, spread over all; of many tensors, the `BRIEF_TENSORS` that moved
    most; of more than `BRIEF_CHECKPOINTS` checkpoints, no pair at all. It takes no more memory than fitting.

    Args:
        rounded: of the whole table, `is_rounded`.
    """
    most_moved = table.most_moved(BRIEF_TENSORS)
    pairs: Sequence[Pair] = ()
    unforeseen: tuple[int, ...] = ()
    if len(table.steps) <= BRIEF_CHECKPOINTS:
        pairs, unforeseen = pairs_of(table)
        # a method that is fitted to the past serves no other, unless it serves none
        pairs = [pair for pair in pairs if len(rehearse(pair.times, pair.time))] or pairs
        pairs = [pair for pair in pairs if pair.horizon <= farthest]
    most = min(BRIEF_PAIRS, _BRIEF_WORK // len(table.steps) ** 2)
    if len(pairs) > most:
        pairs = [pairs[place * len(pairs) // most] for place in range(most)]
    candidate = BacktestCandidate("recipe", tuple(rules))
    rows = _rows_of(candidate, most_moved, pairs, rounded, Spectra(KEPT_MEMORY))
    return _backtest(table, rows, rounded, unforeseen)


def _best_base(table: GramTable) -> int | None:
    times = table.times
    target = times[-1] + (times[-1] - times[0]) / 2
    try:
        found = coefficients("two_point", times, target, {"base_step": "auto"}, gram_matrix=table.total())
    except MethodError:
        return None
    return table.steps[int(np.flatnonzero(found)[0])]


def backtest_memory(steps: Sequence[float], sampled: bool = False) -> int:
    """Bytes that a backtest of these steps, or times, takes beside the table."""
    count, most = len(steps), most_rehearsals(steps)
    of_pairs = sum((count - 1 - last) * min(most, last * (last - 1) // 2) for last in range(1, count - 1))
    of_tensor = _bytes_of_tensor(steps)
    at_once = max(FIT_MEMORY, bytes_of_sampled(of_tensor, count) if sampled else of_tensor)
    return 8 * (3 + 4 + 4 * sampled) * of_pairs + at_once + KEPT_MEMORY


def _bytes_of_tensor(steps: Sequence[float]) -> int:
    """What one tensor takes: all predictions, and what is rehearsed at one origin."""
    count = len(steps)
    return 8 * count * (count * count // 2 + FIT_COPIES * max(count, most_rehearsals(steps)))


@dataclass(slots=True)
class _Sums:
    """Squares of one prediction over the tensors so far."""

    rehearsed: NDArray[np.float64]
    """As `rehearsed_squares` has them."""
    total: NDArray[np.float64]
    """Of the error and of the motion."""
    signal: NDArray[np.float64]


def _rows_of(
    candidate: BacktestCandidate,
    table: GramTable,
    pairs: Sequence[Pair],
    rounded: bool,
    spectra: Spectra,
) -> Iterator[BacktestRow]:
    """The rows of one candidate, in the order of the pairs."""
    steps, first = table.steps, FirstMatch(candidate.rules)
    sums = {
        pair: _Sums(np.zeros((4, len(pair.rehearsals or ()))), np.zeros(2), np.zeros(2)) for pair in pairs
    }
    of_tensor = 8 * FIT_COPIES * len(steps) ** 2  # where all tensors have the same coefficients
    if any(rule.needs_gram_matrix for rule in candidate.rules):
        of_tensor = _bytes_of_tensor(table.times)
    for some in table.parts(max(1, FIT_MEMORY // of_tensor)):
        _add(sums, first, some, rounded, spectra)
    of_pairs = _stderrs(sums, first, table, rounded, spectra)
    for pair, found in sums.items():
        error = _relative(found.total)
        if error is None:
            continue
        expected = Expectation(None, None)
        if pair.rehearsals is not None:
            expected = expectation(found.rehearsed, pair.rehearsals, rounded)
        yield BacktestRow(
            candidate.name,
            steps[pair.last],
            steps[pair.target],
            pair.horizon,
            error,
            expected.total,
            _relative(found.signal) if rounded else None,
            expected.signal,
            **of_pairs.get(pair, {}),
        )


def _stderrs(
    sums: dict[Pair, _Sums], first: FirstMatch, table: GramTable, rounded: bool, spectra: Spectra
) -> dict[Pair, dict[str, float]]:
    """Of each figure of each pair, where weights were sampled, by their names in a row."""
    if table.sample is None:
        return {}
    influences = {
        pair: Influences(
            tuple(
                Influence.on(found[:1], found[1:], np.ones(1))
                for found in ((one.total, one.signal) if rounded else (one.total,))
            ),
            () if pair.rehearsals is None else influences_on(one.rehearsed, pair.rehearsals, rounded),
        )
        for pair, one in sums.items()
    }
    moments = {pair: np.zeros((2, 2, MOMENTS)) for pair in sums}
    of_tensor = bytes_of_sampled(_bytes_of_tensor(table.times), len(table.steps))
    for part in telling_parts(table, max(1, FIT_MEMORY // of_tensor)):
        add_moments(moments, influences, first, part, spectra)
    return {pair: _by_name(influences[pair], stderrs(of_pair)) for pair, of_pair in moments.items()}


def _by_name(influences: Influences, errors: NDArray[np.float64]) -> dict[str, float]:
    both = zip((_FOUND, _EXPECTED), (influences.found, influences.expected), errors, strict=True)
    return {
        f"{name}_stderr": float(on_grid(error))
        for names, said, of_kind in both
        for name, _, error in zip(names, said, of_kind, strict=False)
    }


def _add(
    sums: dict[Pair, _Sums], first: FirstMatch, table: GramTable, rounded: bool, spectra: Spectra
) -> None:
    """Add what some tensors come to; a pair that the candidate cannot predict goes."""

    def add_rehearsed(pair: Pair, parts: Sequence[Past]) -> None:
        assert pair.rehearsals is not None
        sums[pair].rehearsed += rehearsed_squares(parts, pair.last, pair.rehearsals, rounded)

    for some in predicted(sums, first, table, add_rehearsed, spectra):
        for part, errors in some.errors():
            measures = part.measures(len(table.steps), rounded)
            for measure, which in zip(measures, ("total", "signal"), strict=False):
                motions = measure.motions(some.origins, some.targets)
                both = np.stack([measure.squares(errors), motions], axis=-1)
                for pair, squares in zip(some.pairs, both, strict=True):
                    getattr(sums[pair], which)[:] += squares


def _relative(sums: NDArray[np.float64]) -> float | None:
    """The relative error; None when nothing moved."""
    return float(relative(sums[:1], sums[1:])[0]) if sums[1] > 0 else None
