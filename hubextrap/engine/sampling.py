"""The sampled weights of checkpoints: a few small ranges of each tensor, read side by side.

Which weights follows from the tensor's name and size, see `scans.places`. What is read of one file and lies
close together is one request, and the requests of all checkpoints are on their way together. A part cannot be
compared with a file's hash: what is checked of a checkpoint on the Hub is its commit, and that each file is
served with the size and the hash that the commit lists.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.engine.budget import BASELINE, Budget, held
from hubextrap.engine.defaults import MiB
from hubextrap.engine.scan_plan import scan_tables
from hubextrap.engine.stream import unread, untied
from hubextrap.engine.threads import for_each
from hubextrap.errors import OutputError, SourceError
from hubextrap.notebooks import counted
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans.places import LONGEST_STRETCH, STRETCH, places_of
from hubextrap.scans.sampled import SampledWeights
from hubextrap.statistics.table import GROUPS
from hubextrap.tensors.headers import DTYPES
from hubextrap.tensors.ranges import coalesce
from hubextrap.tensors.remote import SMALL, SMALL_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.progress import Stage
    from hubextrap.scans.scan import Scan
    from hubextrap.tensors.interfaces import Source
    from hubextrap.tensors.layout import TensorInfo

GAP = 2**18
"""Bytes between two stretches that are rather read than left out: they come in the time of a round trip."""
PLACES_HELD = 4096
"""Tensors whose places are kept, see `places_of`."""
SCRATCH = 64
"""Bytes that the figures of one weight under one checkpoint take while they are computed."""


REQUEST = 400
"""Bytes that one takes until it is made."""


def sample_weights(
    plan: ScanPlan,
    sources: Mapping[int, Source],
    size: int,
    *,
    known: Mapping[int, NDArray[np.uint8]] | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> SampledWeights:
    """The same weights of each tensor under all checkpoints of a plan, as they are stored.

    Of a tied pair of tensors, the sampled weights alone are compared. The bytes depend on the checkpoints and
    ``size``, on nothing else.

    Args:
        sources: of the checkpoints that are read, by their numbers in the plan.
        size: weights of each tensor; all of a tensor that has no more.
        known: what was sampled of the others before, see `known_weights`.
        budget: from a Hub, where waiting dominates, more threads than it has workers read.

    Raises:
        OutputError: memory is too small; says how much is needed.
        CheckpointMismatch: tied copies turned out to differ.
        SourceError: bytes could not be read.
    """
    progress, known = progress or SilentProgress(), known or {}
    budget = budget or Budget()
    readers = SMALL_IN_FLIGHT if budget.remote else budget.workers
    check_memory(plan, size, budget, readers, sum(map(len, known.values())))
    for note in plan.notes:
        progress.say(note)
    groups = _alike(plan, sorted(sources), size)
    stored = dict(known)
    for alike in groups:
        stored |= {k: np.empty(int(alike.ends[-1]), np.uint8) for k in alike.checkpoints}
    asked = [(alike, request) for alike in groups for request in alike.requests()]
    reads = sum(len(alike.checkpoints) for alike, _ in asked)
    total = sum(request.size * len(alike.checkpoints) for alike, request in asked)
    whole = sum(tensor.inputs[k].nbytes for tensor in plan.tensors for k in sources)
    kept = sum(map(len, stored.values()))
    idle = "; to read all weights (--exact) would cost no more" if asked and total >= whole else ""
    progress.say(
        f"a sample of {size:,} weights per tensor: {total / 1e6:,.1f} of {whole / 1e6:,.1f} MB in "
        f"{counted(reads, 'read')} of {counted(len(sources), 'checkpoint')}{idle}; "
        f"a scan's file of all {len(plan.steps)} keeps {kept / 1e6:,.1f} MB"
    )
    with progress.stage("sample", total) as stage:
        _fill(plan, sources, asked, stored, readers, stage)
    for alike in groups:
        for k in alike.checkpoints:
            alike.check_twins(plan, k, stored[k], sources[k])
            stored[k] = stored[k][: alike.own]
    every = range(len(plan.steps))
    dtypes = tuple(tuple(tensor.inputs[k].dtype for tensor in plan.tensors) for k in every)
    return SampledWeights(size, dtypes, tuple(stored[k] for k in every))


def known_weights(
    plan: ScanPlan, known: Scan, size: int, same: Collection[int]
) -> dict[int, NDArray[np.uint8]]:
    """What a scan knows of checkpoints of a plan, by their numbers; those of other dtypes are left out, and
    all where it is of other tensors.

    Args:
        same: the numbers of those whose weights are the ones that it is of.
    """
    weights, table = known.weights, known.gram_table
    if weights is None or weights.size != size:
        return {}
    place = {name: row for row, name in enumerate(table.tensors)}
    rows = [place.get(tensor.name) for tensor in plan.tensors]
    if len(rows) != len(place) or any(
        row is None or table.elements[row] != tensor.elements
        for row, tensor in zip(rows, plan.tensors, strict=True)
    ):
        return {}
    found = {}
    for k in sorted(same):
        at = known.steps.index(plan.steps[k])
        ends = np.cumsum([0, *weights.sizes(at, table.elements.tolist())]).tolist()
        parts = [weights.stored[at][ends[row] : ends[row + 1]] for row in rows if row is not None]
        if [weights.dtypes[at][row] for row in rows if row is not None] == [
            tensor.inputs[k].dtype for tensor in plan.tensors
        ]:
            found[k] = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return found


def check_memory(plan: ScanPlan, size: int, budget: Budget, readers: int, beside: int = 0) -> None:
    """Refuse a sample that the memory does not hold, together with what is made of it.

    Args:
        readers: threads.
        beside: bytes that something else takes, such as known weights as they were.

    Raises:
        OutputError: says how much is needed.
    """
    count = len(plan.steps)
    drawn = [min(tensor.elements, size) for tensor in plan.tensors]
    widths = [max(DTYPES[info.dtype].itemsize for info in tensor.inputs) for tensor in plan.tensors]
    # of a stretch, or of a tensor that is read whole
    most = max(LONGEST_STRETCH, 2 * GROUPS * max(STRETCH, size))
    largest = max(
        (min(tensor.elements, most) * width for tensor, width in zip(plan.tensors, widths, strict=True)),
        default=0,
    )
    places = 8 * sum(sorted(drawn)[-PLACES_HELD:])
    weights = count * sum(number * width for number, width in zip(drawn, widths, strict=True))
    need = BASELINE + budget.reserve + held(plan.layouts, len(plan.tensors)) + weights + places + beside
    need += (1 + GROUPS) * scan_tables(count, len(plan.tensors))
    need += REQUEST * GROUPS * len(plan.tensors) * (1 + len({id(one.tensors) for one in plan.layouts}))
    need += readers * max(SMALL, largest) + SCRATCH * count * max(drawn, default=0)
    if budget.memory < need:
        fewer = ", or sample fewer weights" if budget.memory >= need - weights - places else ""
        raise OutputError(
            f"memory: {budget.memory / MiB:.0f} MiB are not enough for a sample of {size:,} weights per "
            f"tensor of {count} checkpoints; give at least {-(-need // MiB)} MiB{fewer}"
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """Bytes of one file that are read at once."""

    file: str
    start: int
    stop: int
    members: tuple[tuple[int, int], ...]
    """The stretches in it: a row of `_Alike.stored`, and which of its ranges."""

    @property
    def size(self) -> int:
        return self.stop - self.start


class _Alike:
    """Checkpoints that keep their tensors at the same places.

    Attributes:
        checkpoints: their numbers.
        stored: the tensors and, behind them, the tied copies: name, elements, where the bytes lie.
        ends: where the sampled weights of each begin, and the last ones end.
        own: bytes of those of the tensors.
    """

    def __init__(self, plan: ScanPlan, k: int, size: int) -> None:
        self.checkpoints: list[int] = []
        self._size = size
        self.stored: list[tuple[str, int, TensorInfo]] = [
            (tensor.name, tensor.elements, tensor.inputs[k]) for tensor in plan.tensors
        ]
        self._twins: list[tuple[int, TensorInfo]] = [
            (row, twin)
            for row, tensor in enumerate(plan.tensors)
            for position, twin in tensor.twins
            if tensor.checkpoints[position] == k
        ]
        self.stored += [(*self.stored[row][:2], twin) for row, twin in self._twins]
        sizes = [min(count, size) * DTYPES[info.dtype].itemsize for _, count, info in self.stored]
        self.ends = np.cumsum([0, *sizes], dtype=np.int64)
        self.own = int(self.ends[len(plan.tensors)])

    def requests(self) -> list[_Request]:
        """What is read of each of the checkpoints, in the order of the tensors."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        owners: dict[str, list[tuple[int, int]]] = {}
        for row, (name, elements, info) in enumerate(self.stored):
            itemsize = DTYPES[info.dtype].itemsize
            for number, (first, count) in enumerate(places_of(name, elements, self._size).ranges):
                ranges.setdefault(info.file, []).append((info.offset + first * itemsize, count * itemsize))
                owners.setdefault(info.file, []).append((row, number))
        found = [
            _Request(file, span.start, span.stop, tuple(owners[file][member] for member in span.members))
            for file in ranges
            for span in coalesce(ranges[file], GAP, SMALL)
        ]
        return sorted(found, key=lambda request: min(request.members))

    def pick(self, request: _Request, view: memoryview, out: NDArray[np.uint8]) -> None:
        """Keep the sampled weights of what was read."""
        for row, number in request.members:
            name, elements, info = self.stored[row]
            itemsize = DTYPES[info.dtype].itemsize
            places = places_of(name, elements, self._size)
            first, count = places.ranges[number]
            before = sum(length for _, length in places.ranges[:number])
            offset = info.offset + first * itemsize - request.start
            read = np.frombuffer(view, f"u{itemsize}", count, offset)
            kept = out[self.ends[row] : self.ends[row + 1]].view(read.dtype)
            here = (places.inside >= before) & (places.inside < before + count)
            kept[here] = read[places.inside[here] - before]

    def check_twins(self, plan: ScanPlan, k: int, out: NDArray[np.uint8], source: Source) -> None:
        """Raises CheckpointMismatch where a tied copy's weights are others."""
        for number, (row, twin) in enumerate(self._twins, start=len(plan.tensors)):
            one, other = (out[self.ends[at] : self.ends[at + 1]] for at in (row, number))
            if not np.array_equal(one, other):
                called = f"step {plan.steps[k]} ({source.name})"
                raise untied(called, plan.tensors[row].name, twin.name, plan.steps[k])


def _alike(plan: ScanPlan, numbers: Sequence[int], size: int) -> list[_Alike]:
    """Checkpoints with these numbers, those together that keep their tensors at the same places."""
    found: dict[int, _Alike] = {}
    for k in numbers:
        key = id(plan.layouts[k].tensors)  # which headers that are alike share
        found[key] = found.get(key) or _Alike(plan, k, size)
        found[key].checkpoints.append(k)
    return list(found.values())


def _fill(
    plan: ScanPlan,
    sources: Mapping[int, Source],
    asked: Sequence[tuple[_Alike, _Request]],
    stored: Mapping[int, NDArray[np.uint8]],
    readers: int,
    stage: Stage,
) -> None:
    """Read side by side, and keep the sampled weights of each checkpoint."""
    rooms = threading.local()  # what lies between the weights goes no farther than these
    largest = max((request.size for _, request in asked), default=0)

    def fill(one: tuple[int, _Alike, _Request]) -> None:
        k, alike, request = one
        if not hasattr(rooms, "view"):
            rooms.view = memoryview(bytearray(largest))
        view = rooms.view[: request.size]
        try:
            sources[k].read(request.file, request.start, view)
        except SourceError as error:
            tensor, step = alike.stored[request.members[0][0]][0], plan.steps[k]
            raise unread(error, request.file, f"step {step}, a sample of tensor {tensor}", step) from error
        alike.pick(request, view, stored[k])
        stage.advance(request.size)

    # checkpoint after checkpoint, so that the places of a tensor are at hand
    for_each(readers, fill, ((k, *one) for one in asked for k in one[0].checkpoints))
