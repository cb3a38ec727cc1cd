"""The scan of a run of adapters: what a pass over its merged weights would find, from the factors alone.

Gram matrices are exact. Figures of single elements are of a few drawn from each tensor: each takes a sum over
the rank, and there are as many as in the base. Tensors that were trained whole are scanned like those of full
checkpoints.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_128

from hubextrap.adapters.blas import one_blas_thread
from hubextrap.adapters.gram import LENGTH, RANKS, centred, elements_at, groups, inner_products
from hubextrap.engine.budget import BASELINE, NO_LIMIT, Budget, held
from hubextrap.engine.defaults import MiB
from hubextrap.engine.scan import LEAST_SAMPLE, assemble_scan, draw, finished_before, scan_part
from hubextrap.engine.scan_plan import COMPILER, plan_scan, scan_tables
from hubextrap.engine.stream import too_far
from hubextrap.engine.threads import in_threads
from hubextrap.errors import OutputError
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans.scan import EXAMPLES
from hubextrap.scans.tensor_scan import TensorScan
from hubextrap.statistics.linearity import BINS, count_linearity, spread_counts
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.layout import CheckpointLayout, ShardInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.adapters.run import AdapterRun, Term
    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.scans.scan import Scan
    from hubextrap.scans.tensor_scan import ScanJournal
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import TensorInfo
    from hubextrap.trajectory.checkpoint import Trajectory

SAMPLED = 2048
"""Elements of a tensor that are looked at one by one."""
AT_ONCE = 4096
"""Of the same, those whose values under all checkpoints are held."""
_ALIGNED = 64
_LARGEST = float(np.finfo(np.float32).max)


def scan_adapters(
    run: AdapterRun,
    trajectory: Trajectory,
    *,
    reference_share: float | None = None,
    pins: Sequence[str] | None = None,
    journal: ScanJournal | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Scan K adapters. The result depends on them and ``reference_share`` alone, and the base is read only
    where it is the first checkpoint of tensors that were trained whole.

    Args:
        trajectory: that of the run.
        reference_share: share of each tensor's weights to draw for the reference protocol, which takes 0.001.
        pins: what stands for each checkpoint's bytes; by default its commit or folder.
        journal: where finished tensors are kept, so that a scan that was stopped can go on.
        budget: where memory is little, fewer threads work, or factors are read more than once.

    Raises:
        NonFinite: a checkpoint holds NaN or infinity, or has moved so far that the squares exceed float32.
        OutputError: memory is too small.
        StepError: fewer than two checkpoints.
        HubExtrapError: factors, or the base where it is needed, could not be read.
    """
    progress, budget = progress or SilentProgress(), budget or Budget()
    plan = plan_scan(run.steps, run.layouts, budget=Budget(NO_LIMIT, budget.workers))
    for note in plan.notes:
        progress.say(note)
    done = finished_before(plan, journal)
    wanted = {tensor.name for tensor in plan.tensors} - done.keys()

    def finish(found: TensorScan) -> None:
        done[found.name] = found
        if journal:
            journal.record(found)

    whole = [name for name in run.last.whole if name in wanted]
    if whole:
        within = replace(budget, remote=_remote(run))
        for found in _scan_whole(run, whole, reference_share, within, progress):
            finish(found)
    todo = [name for name in run.last.factors if name in wanted]
    needs = {name: _Need.of(run, name) for name in todo}
    workers, share = _shares(needs, plan, budget)
    room = _Room(max((need.room for need in needs.values() if need.most <= share), default=0))
    one = partial(_scan_factors, run, reference_share=reference_share, share=share, needs=needs, room=room)
    total = sum(sum(need.stored) for need in needs.values())
    with one_blas_thread(), progress.stage("scan", total) as stage:
        for found in in_threads(workers, one, todo):
            stage.advance(sum(needs[found.name].stored))
            finish(found)
    return replace(assemble_scan(trajectory, plan, done, reference_share, pins), sampled=SAMPLED)


@dataclass(frozen=True, slots=True)
class _Need:
    """What the products of one tensor take; K checkpoints, those without one left out."""

    numbers: tuple[int, ...]
    ranks: tuple[int, ...]
    stored: tuple[int, ...]
    """Bytes of the factors in the file."""
    sizes: tuple[int, ...]
    """The same once they are read."""
    scratch: int
    """Bytes beside the factors."""

    @classmethod
    def of(cls, run: AdapterRun, name: str) -> _Need:
        """What the headers say."""
        found = [(k, one.factors[name]) for k, one in enumerate(run.adapters) if one is not None]
        ranks = tuple(factors.rank for _, factors in found)
        stored = tuple(factors.a.nbytes + factors.b.nbytes for _, factors in found)
        # whatever is shorter than float32 is read as that
        sizes = tuple(
            sum(one.nbytes * max(1, 4 // DTYPES[one.dtype].itemsize) for one in (factors.a, factors.b))
            for _, factors in found
        )
        stacked = max(RANKS, *ranks)
        # two stacks and two tables of their products, with what is added to them; the elements, as they are
        # gathered and counted
        scratch = 8 * (2 * stacked * LENGTH + 4 * stacked**2) + 8 * AT_ONCE * (
            8 * len(run.steps) + 3 * max(ranks)
        )
        return cls(tuple(k for k, _ in found), ranks, stored, sizes, scratch)

    @property
    def most(self) -> int:
        """Bytes with which each factor is read once."""
        return self.room + self.scratch

    @property
    def room(self) -> int:
        """Bytes of all factors."""
        return sum(self.sizes) + 2 * _ALIGNED * len(self.sizes)

    @property
    def least(self) -> int:
        """Bytes without which it cannot be scanned: two groups are held."""
        largest = sorted(sum(self.sizes[k] for k in group) for group in groups(self.ranks, self.sizes))
        return sum(largest[-2:]) + self.scratch


def _shares(needs: Mapping[str, _Need], plan: ScanPlan, budget: Budget) -> tuple[int, int]:
    """How many threads there is memory for, and the bytes of each.

    Raises:
        OutputError: not even one.
    """
    fixed = BASELINE + COMPILER + scan_tables(len(plan.steps), len(plan.tensors))
    fixed += held(plan.layouts, len(plan.tensors)) + budget.reserve
    least = max((need.least for need in needs.values()), default=0)
    if budget.memory < fixed + least:
        raise OutputError(
            f"memory: {budget.memory / MiB:.0f} MiB are not enough for {len(plan.steps)} adapters; give at "
            f"least {-(-(fixed + least) // MiB)} MiB"
        )
    wanted = max((need.most for need in needs.values()), default=1)
    # rather fewer threads than to read again
    workers = max(1, min(budget.workers, (budget.memory - fixed) // wanted))
    return workers, (budget.memory - fixed) // workers


class _Room(threading.local):
    """Memory of each thread for the factors of one tensor after the other.

    Fresh memory, which the kernel fills with zeros first, would cost more time than reading.
    """

    def __init__(self, size: int) -> None:
        self._bytes = np.empty(size, np.uint8)
        self._taken = 0

    def clear(self) -> None:
        """What was given may be given again."""
        self._taken = 0

    def __call__(self, count: int) -> NDArray[np.uint8]:
        given = self._bytes[self._taken : self._taken + count]
        self._taken += -(-count // _ALIGNED) * _ALIGNED
        assert len(given) == count
        return given


class _Products:
    """The products of one tensor, by checkpoint: held where there is memory for all, else read each time."""

    def __init__(self, run: AdapterRun, name: str, room: _Room | None) -> None:
        """Args: room: for all of them; it is cleared."""
        self._run, self._name, self._room = run, name, room
        self._held: dict[int, Term] = {}
        if room is not None:
            room.clear()

    def __call__(self, k: int) -> Term:
        if self._room is None:
            return self._run.term(k, self._name)
        if k not in self._held:
            self._held[k] = self._run.term(k, self._name, self._room)
        return self._held[k]


def _scan_factors(
    run: AdapterRun,
    name: str,
    *,
    reference_share: float | None,
    share: int,
    needs: Mapping[str, _Need],
    room: _Room,
) -> TensorScan:
    """What a pass over the merged deltas of one tensor would find."""
    need, last = needs[name], run.layouts[-1].tensors[name]
    elements, count = int(np.prod(last.shape, dtype=np.int64)), len(run.steps)
    load = _Products(run, name, room if need.most <= share else None)
    digests = {k: _digest(load(k)) for k in need.numbers}
    found = TensorScan.empty(name, elements, count, EXAMPLES)
    with np.errstate(over="ignore", invalid="ignore"):  # what came of it is looked at
        found.gram[...] = _gram(load, need, digests, count)
    _check_finite(run, name, found.gram, load, need.numbers)
    moves = _Moves(load, need.numbers, run.steps)
    places = draw(name, elements, EXAMPLES, seed=0)
    found.example_places[: len(places)] = places
    drawn = draw(name, elements, SAMPLED, seed=2)
    every = np.union1d(places, drawn)
    values = moves.at(every)
    found.example_values[: len(places)] = values[np.searchsorted(every, places)]
    counts = count_linearity(run.steps, values[np.searchsorted(every, drawn)])
    found.counts[...] = spread_counts(counts, elements)
    if reference_share is not None:
        size = max(LEAST_SAMPLE, int(elements * reference_share))
        found.sample_counts[...] = moves.count(draw(name, elements, size, seed=1))
    return replace(found, inputs=tuple(digests.get(k, b"").hex() for k in range(count)))


def _gram(load: _Products, need: _Need, digests: Mapping[int, bytes], count: int) -> NDArray[np.float64]:
    """(K, K): inner products of moves from the first checkpoint; adapters that are equal have equal rows."""
    number_of: dict[bytes, int] = {}
    distinct: list[int] = []
    for i, digest in enumerate(digests.values()):
        if digest not in number_of:
            number_of[digest] = len(distinct)
            distinct.append(i)
    products = np.zeros((len(distinct) + 1, len(distinct) + 1))  # the last is the base, whose delta is 0
    products[:-1, :-1] = inner_products(
        lambda number: load(need.numbers[distinct[number]]),
        [need.ranks[i] for i in distinct],
        [need.sizes[i] for i in distinct],
    )
    numbers = [number_of[digests[k]] if k in digests else len(distinct) for k in range(count)]
    return centred(products, numbers[0])[np.ix_(numbers, numbers)]


@dataclass(frozen=True, slots=True)
class _Moves:
    """Elements of one tensor, less what they were at the first checkpoint."""

    load: _Products
    numbers: tuple[int, ...]
    steps: Sequence[int]

    def at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, K): at places that are in order; rounded once."""
        values = np.zeros((len(self.steps), len(places)))
        for k in self.numbers:
            values[k] = elements_at(self.load(k), places)
        return np.ascontiguousarray((values - values[0]).T, dtype=np.float32)

    def count(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The table of counts of many elements, (BINS + 3,)."""
        counts = np.zeros(BINS + 3, np.int64)
        for start in range(0, len(places), AT_ONCE):
            counts += count_linearity(self.steps, self.at(places[start : start + AT_ONCE]))
        return counts


def _digest(term: Term) -> bytes:
    """A hash of what a product is made of."""
    found = xxh3_128(repr((term.scale, term.left.shape, term.right.shape)).encode())
    for factor in (term.left, term.right):
        found.update(factor.ravel(order="K").data)
    return found.digest()


def _check_finite(
    run: AdapterRun, name: str, gram: NDArray[np.float64], load: _Products, numbers: Sequence[int]
) -> None:
    """Refuse what is NaN or infinite, and moves whose squares would be in float32.

    Raises:
        NonFinite: says which checkpoint holds it.
    """
    if np.isfinite(gram).all() and gram.max() <= _LARGEST:
        return
    for k in numbers:
        term = load(k)
        if not (np.isfinite(term.left).all() and np.isfinite(term.right).all()):
            raise run.non_finite(k, name)
    raise too_far(name)


def _remote(run: AdapterRun) -> bool:
    return any(checkpoint.repo is not None for checkpoint in run.checkpoints)


def _scan_whole(
    run: AdapterRun, names: Sequence[str], reference_share: float | None, budget: Budget, progress: Progress
) -> list[TensorScan]:
    """Tensors that were trained themselves: all of their weights are read, like those of full checkpoints."""
    plan, sources = plan_of_whole(run, names, budget)
    return scan_part(
        plan, sources, plan.tensors, reference_share=reference_share, shared=(), progress=progress
    )[0]


def plan_of_whole(run: AdapterRun, names: Sequence[str], budget: Budget) -> tuple[ScanPlan, list[Source]]:
    """A plan of tensors that were trained themselves, and where they are read: at step 0 maybe the base."""
    sources: list[Source] = []
    layouts, parts = [], []
    for adapter, source in zip(run.adapters, run.sources, strict=True):
        if adapter is None or source is None:
            base = run.base
            source, layout = base.source, base.layout
        else:
            layout = adapter.layout
        sources.append(source)
        layouts.append(layout)
        parts.append(_only(layout.name, names, layout.tensors if adapter is None else adapter.whole))
    plan = plan_scan(run.steps, parts, budget=budget)
    # the hashes of what is read are of the files as they are
    return replace(plan, layouts=tuple(layouts)), sources


def _only(layout: str, names: Sequence[str], stored: Mapping[str, TensorInfo]) -> CheckpointLayout:
    """A layout of some tensors, by the base's names."""
    tensors = tuple(replace(stored[name], name=name) for name in names)
    return CheckpointLayout(layout, (ShardInfo("", 0, tensors),), None)
