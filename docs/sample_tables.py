"""The tables of docs/sampling.md: what calibrated and a backtest lose where some weights stand for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from measured_run import CALIBRATED, Array, MeasuredRun, figure, markdown
from numpy.typing import NDArray

from hubextrap.methods import Rule
from hubextrap.recipe.fits import DEFAULT_SAMPLE
from hubextrap.scans.places import Places, places_of
from hubextrap.statistics import GramTable, backtest_table
from hubextrap.statistics.backtesting import BacktestCandidate
from hubextrap.statistics.table import GROUPS, GramSample

BLOCK_OF_SIZE = {1024: 256, 4096: 1024, 16384: 1024}
"""By the number of weights drawn from a tensor: how long a block of neighbours is, for comparison."""
DTYPES_OF = {"C": ("F32", "BF16")}
"""To which a run is cast, if not to F32 alone."""
SEEDS = 10
RUNS_OF_ROWS, ROW = ("A", "C"), 128
"""Runs of which some rows are looked at, and the length of a row of most of their matrices."""
ROWS = (1, 4.6, 18.3)
"""Rows in a stretch; the last ones are those of 2**14 and of 2**16 weights of a 7B model."""
FIRST_ORIGIN, REACHES = 6, (1.25, 1.5, 2.0)
Groups = Sequence[NDArray[np.int64]]
"""The places that are drawn from one tensor, group by group."""
Draw = Callable[[str, int, int], Groups]
"""Of a tensor's name, its number of elements and a seed."""
Deltas = Mapping[str, Array]
"""By the name of each tensor: (K, elements), how far each checkpoint is from the first."""


def library(size: int) -> Draw:
    """The places that `hubextrap --sample` takes."""
    return lambda name, elements, seed: groups_of(places_of(name, elements, size, seed))


def groups_of(places: Places) -> Groups:
    return np.split(places.in_tensor(), np.cumsum(places.groups)[:-1])


def blocks(size: int) -> Draw:
    """As many weights, in blocks of neighbours at random places; all of a tensor that has no more."""
    length = BLOCK_OF_SIZE[size]

    def draw(name: str, elements: int, seed: int) -> Groups:
        if elements <= size:
            return np.array_split(np.arange(elements), GROUPS)
        generator = np.random.default_rng([seed, crc32(name.encode())])
        slots = generator.choice(elements // length, size // length, replace=False)
        places = slots[:, None] * length + np.arange(length)
        return [places[group::GROUPS].ravel() for group in range(GROUPS)]

    return draw


def stretches(rows: float) -> Draw:
    """A default sample, from a stretch of so many rows for each group: as of larger tensors."""
    length = round(rows * ROW)

    def draw(name: str, elements: int, seed: int) -> Groups:
        each = min(DEFAULT_SAMPLE // GROUPS, length)
        if elements <= GROUPS * length:
            return groups_of(places_of(name, elements, GROUPS * each, seed))
        generator = np.random.default_rng([seed, crc32(name.encode())])
        slots = generator.choice(elements // length, GROUPS, replace=False)
        return [slot * length + generator.choice(length, each, replace=False) for slot in slots]

    return draw


def sampled_table(table: GramTable, deltas: Deltas, draw: Draw, seed: int = 0) -> GramTable:
    """What the drawn weights say of the inner products, as a scan of a sample has it."""
    sums = np.zeros((len(table.tensors), GROUPS, len(table.steps), len(table.steps)))
    drawn = np.zeros(len(table.tensors), np.int64)
    for row, name in enumerate(table.tensors):
        groups = draw(name, deltas[name].shape[1], seed)
        drawn[row] = sum(map(len, groups))
        for group, places in enumerate(groups):
            some = deltas[name][:, places]
            sums[row, group] = some @ some.T * (table.elements[row] / drawn[row])
    return replace(table, gram=sums.sum(axis=1), sample=GramSample(sums, drawn, int(drawn.max())))


def pairs_of(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Last and target: from the sixth checkpoint on, those observed nearest to 1.25, 1.5 and 2 times it."""
    found = []
    for count in range(FIRST_ORIGIN, len(steps)):
        for wanted in (steps[count - 1] * reach for reach in REACHES):
            if wanted <= steps[-1]:
                target = min(steps[count:], key=lambda step: abs(step - wanted))
                found.append((steps[count - 1], target))
    return list(dict.fromkeys(found))


def real_errors(fitted: GramTable, exact: GramTable, pairs: Sequence[tuple[int, int]]) -> Array:
    """(P,): how far predictions by `calibrated` are from the real weights; 1 is the last checkpoint.

    Args:
        fitted: gives the coefficients.
        exact: of all weights, by which the error is measured.
    """
    rule, count = Rule(("*",), CALIBRATED), len(exact.steps)
    found = []
    for last, target in pairs:
        origin = exact.steps.index(last)
        seen = fitted.seen_at(origin)
        mixture = rule.coefficients(seen.times, [seen.clock.time_of(target)], seen.gram)[:, 0]
        real, known = np.eye(count)[[exact.steps.index(target), origin]]
        away = np.pad(mixture, ((0, 0), (0, count - origin - 1))) - real
        squares = np.einsum("ni,nij,nj->", away, exact.gram, away, optimize=True)
        found.append(squares / ((known - real) @ exact.total() @ (known - real)))
    return np.sqrt(found)


def backtested(table: GramTable, pairs: Sequence[tuple[int, int]], dtype: str) -> Array:
    """(2, P): the errors of `calibrated` that a backtest finds, and their standard errors."""
    rows = backtest_table(table, [BacktestCandidate.of(CALIBRATED)], dtypes=[dtype]).rows
    by_pair = {(row.last_step, row.target_step): row for row in rows}
    both = [(by_pair[pair].error, by_pair[pair].error_stderr) for pair in pairs]
    return np.array(both, dtype=np.float64).T


@dataclass(frozen=True)
class Draws:
    """What S draws of one size say of P predictions, each (S, P)."""

    losses: Array
    """By how much the real error grows where coefficients come from the sample."""
    off: Array
    """By how much a backtested error is off."""
    stated: Array
    """Its standard error."""

    @property
    def loss(self) -> str:
        """The mean, and the 95th percentile."""
        mean, most = float(self.losses.mean()), float(np.quantile(self.losses, 0.95))
        return f"{_from_zero(mean)} ({_from_zero(most)})"

    @property
    def cells(self) -> list[str]:
        """The loss, what errors are off by, what is stated of that, how often three times that is enough."""
        within = float(np.mean(np.abs(self.off) <= 3 * self.stated))
        return [self.loss, figure(rms(self.off), 4), figure(rms(self.stated), 4), f"{within:.1%}"]


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _from_zero(loss: float) -> str:
    return figure(loss, 4).replace("-", "−") if round(loss, 4) else "0"


@dataclass(frozen=True)
class Case:
    """A run as it was stored."""

    words: str
    dtype: str
    """As safetensors calls it."""
    table: GramTable
    """Of all the weights."""
    real: GramTable
    """Of the weights before they were cast: by these, predictions are judged."""
    deltas: Deltas

    @classmethod
    def of(cls, run: MeasuredRun, dtype: str = "F32") -> Case:
        """Args: dtype: to which the run is cast."""
        deltas = {name: run.deltas(name, dtype) for name in run.table.tensors}
        gram = np.array([some @ some.T for some in deltas.values()])
        words = run.name if dtype == "F32" else f"{run.name} in bf16"
        return cls(words, dtype, replace(run.table, gram=gram), run.table, deltas)

    def sampled(self, draw: Draw, seed: int = 0) -> GramTable:
        return sampled_table(self.table, self.deltas, draw, seed)


def draws_of(case: Case, draw: Draw, stated: bool = True) -> Draws:
    """Args: stated: work the standard errors out, which takes five times as long."""
    table, pairs = case.table, pairs_of(case.table.steps)
    best, right = real_errors(table, case.real, pairs), backtested(table, pairs, case.dtype)[0]
    losses, found = [], []
    for seed in range(SEEDS):
        sampled = case.sampled(draw, seed)
        losses.append(real_errors(sampled, case.real, pairs) - best)
        sampled = sampled if stated else replace(sampled, sample=None)
        found.append(backtested(sampled, pairs, case.dtype))
    errors, stderrs = np.array(found).swapaxes(0, 1)
    return Draws(np.array(losses), errors - right, stderrs)


def size_table(runs: Sequence[MeasuredRun]) -> str:
    """What is lost with so many weights, drawn as the library does and in blocks of neighbours."""
    cases = [Case.of(run, dtype) for run in runs for dtype in DTYPES_OF.get(run.name, ("F32",))]
    rows = []
    for case in cases:
        for size in BLOCK_OF_SIZE:
            ours, theirs = draws_of(case, library(size)), draws_of(case, blocks(size), stated=False)
            rows.append([case.words, f"{size:,}", *ours.cells, *theirs.cells[:2]])
    head = ["run", "weights", "loss (95%)", "off by", "stated", "within 3"]
    return markdown([*head, "in blocks: loss (95%)", "off by"], rows)


def row_table(runs: Sequence[MeasuredRun]) -> str:
    """What is lost of a tensor of which only so many rows are seen: ``ROWS`` in each stretch."""
    cases = [Case.of(run) for run in runs if run.name in RUNS_OF_ROWS]
    rows = []
    for count in ROWS:
        cells = [cell for case in cases for cell in draws_of(case, stretches(count)).cells[:3]]
        rows.append([f"{GROUPS} × {count:g}", *cells])
    whole = [cell for case in cases for cell in draws_of(case, library(DEFAULT_SAMPLE)).cells[:3]]
    head = [f"{case.words}: {words}" for case in cases for words in ("loss (95%)", "off by", "stated")]
    return markdown(["rows seen", *head], [*rows, ["all", *whole]])


def tables(runs: Sequence[MeasuredRun]) -> str:
    return "\n\n".join([size_table(runs), row_table(runs)])
