"""One pass over all checkpoints of a trajectory: Gram matrices, and statistics of every single weight.

Tensors are cut at multiples of a block, so a block's figures do not depend on memory or threads, and they are
added up in the order of the blocks.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from hubextrap.engine.inputs import InputHashes, check_blamed, file_uses
from hubextrap.engine.kernels import count_non_finite, widen
from hubextrap.engine.scan_plan import reads_as, scanned_checkpoints
from hubextrap.engine.stream import Inputs, stream, too_far
from hubextrap.errors import NonFinite
from hubextrap.progress import Progress, SilentProgress
from hubextrap.scans.parts import ReferenceSample
from hubextrap.scans.scan import EXAMPLES, Scan
from hubextrap.scans.tensor_scan import TensorScan
from hubextrap.statistics.elements import BlockScanner
from hubextrap.statistics.linearity import BINS, count_linearity, random_walk
from hubextrap.statistics.table import SCAN_BLOCK, GramTable
from hubextrap.tensors.headers import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.engine.inputs import Digests, Key
    from hubextrap.engine.scan_plan import ScanPlan
    from hubextrap.engine.stream import UnitBuffer
    from hubextrap.engine.units import Piece, Unit
    from hubextrap.scans.tensor_scan import ScanJournal
    from hubextrap.tensors.interfaces import Source
    from hubextrap.trajectory.checkpoint import Trajectory

LEAST_SAMPLE = 50
"""Weights that the reference protocol draws from a tensor at least."""


def scan_trajectory(
    trajectory: Trajectory,
    sources: Sequence[Source],
    plan: ScanPlan,
    *,
    reference_share: float | None = None,
    pins: Sequence[str] | None = None,
    journal: ScanJournal | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Scan K checkpoints, each byte read once. The result depends on them and ``reference_share`` alone.

    Weights are compared as float32: F64 is rounded.

    Args:
        sources: one per checkpoint, in step order.
        plan: how, see `scan_plan.plan_scan`.
        reference_share: share of each tensor's weights to draw for the reference protocol, which takes 0.001.
        pins: what stands for each checkpoint's bytes; by default its commit or folder.
        journal: where finished tensors are kept, so that a scan that was stopped can go on.

    Raises:
        CheckpointMismatch: tied copies turned out to differ.
        NonFinite: a checkpoint holds NaN or infinity.
        SourceError: bytes could not be read.
    """
    progress = progress or SilentProgress()
    for note in plan.notes:
        progress.say(note)
    done = finished_before(plan, journal)
    todo = [tensor for tensor in plan.tensors if tensor.name not in done]
    begun = [tensor for tensor in plan.tensors if tensor.name in done]

    def finish(found: TensorScan) -> None:
        done[found.name] = found
        if journal:
            journal.record(found)

    uses, read = file_uses(plan.tensors), file_uses(begun)
    with closing(InputHashes(sources, plan.layouts, uses, begun=read)) as hashes:
        for tensor in begun:
            if tensor.elements:
                hashes.expect(tensor, done[tensor.name].inputs)
        for tensor in todo:
            if not tensor.elements:
                finish(TensorScan.empty(tensor.name, 0, len(plan.steps), EXAMPLES))
        scan = _Scan(plan, todo, reference_share, finish)
        stream(Inputs(plan.steps, tuple(sources)), scan, hashes, plan.buffers, progress)
    return assemble_scan(trajectory, plan, done, reference_share, pins)


def finished_before(plan: ScanPlan, journal: ScanJournal | None) -> dict[str, TensorScan]:
    """The tensors of a plan that a scan which was stopped has finished, by name."""
    sizes = {tensor.name: tensor.elements for tensor in plan.tensors}
    return {
        name: found
        for name, found in (journal.finished.items() if journal else ())
        if sizes.get(name) == found.elements and len(found.gram) == len(plan.steps)
    }


def scan_part(
    plan: ScanPlan,
    sources: Sequence[Source],
    tensors: Sequence[TensorInputs],
    *,
    reference_share: float | None,
    shared: Collection[Key],
    progress: Progress | None = None,
) -> tuple[list[TensorScan], dict[Key, dict[int, bytes]]]:
    """What `scan_trajectory` finds in some tensors of a plan; and hashes of what was read of shared files.

    Files that these alone are read from are compared with the Hub's hashes, as `scan_trajectory` does.

    Args:
        shared: the plan's `inputs.shared_files`.

    Raises:
        HubExtrapError: as `scan_trajectory`.
    """
    done = {
        tensor.name: TensorScan.empty(tensor.name, 0, len(plan.steps), EXAMPLES)
        for tensor in tensors
        if not tensor.elements
    }

    def finish(found: TensorScan) -> None:
        done[found.name] = found

    uses = file_uses(tensors)
    with closing(InputHashes(sources, plan.layouts, uses, elsewhere=shared)) as hashes:
        scan = _Scan(plan, tensors, reference_share, finish)
        stream(Inputs(plan.steps, tuple(sources)), scan, hashes, plan.buffers, progress or SilentProgress())
        return [done[tensor.name] for tensor in tensors], hashes.left()


@dataclass(frozen=True, slots=True)
class _Part:
    """What a worker found in one piece of a tensor."""

    grams: NDArray[np.float64]
    """(blocks, K, K)."""
    counts: NDArray[np.int64]
    sample_counts: NDArray[np.int64]
    examples: list[tuple[int, NDArray[np.float32]]]
    """Which example, and its (K,) values."""


@dataclass
class _Scan:
    """The consumer: adds up what workers find, tensor by tensor."""

    title = "scan"

    plan: ScanPlan
    tensors: Sequence[TensorInputs]
    reference_share: float | None
    finish: Callable[[TensorScan], None]
    """Takes what was found in a tensor as soon as it ends."""

    def __post_init__(self) -> None:
        self._current: TensorScan | None = None
        self.bytes_read = sum(tensor.bytes_stored for tensor in self.tensors)
        self.bytes_taken = sum(tensor.bytes_read for tensor in self.tensors)

    def units(self) -> Iterator[Unit]:
        return self.plan.units(self.tensors)

    def worker(self, buffer: UnitBuffer) -> Callable[[Unit], list[_Part]]:
        return ScanWorker(buffer, self.reference_share)

    def take(self, unit: Unit, result: list[_Part], digests: Digests) -> None:
        """Add up the parts; hand over the tensors that end."""
        for piece, part in zip(unit.pieces, result, strict=True):
            if (current := self._current) is None:
                current = TensorScan.empty(piece.tensor, piece.elements, len(self.plan.steps), EXAMPLES)
                places = example_places(piece)
                current.example_places[: len(places)] = places
            for gram in part.grams:  # one after the other: their order decides the last bits
                current.gram[...] += gram
            current.counts[...] += part.counts
            current.sample_counts[...] += part.sample_counts
            for number, values in part.examples:
                current.example_values[number] = values
            self._current = current
            if piece.ends_tensor:
                found = digests[piece.tensor]
                self.finish(replace(current, inputs=tuple(found[k].hex() for k in piece.checkpoints)))
                self._current = None


class ScanWorker:
    """Scratch memory beside a buffer, used for one unit after the other. Not thread-safe."""

    def __init__(self, buffer: UnitBuffer, reference_share: float | None) -> None:
        self._buffer = buffer
        self._steps = buffer.inputs.steps
        self._reference_share = reference_share
        self._scanner = BlockScanner(self._steps)
        self._converted = np.zeros((0, 0), np.float32)

    def __call__(self, unit: Unit) -> list[_Part]:
        """Scan the pieces of the unit that the buffer holds.

        Raises:
            CheckpointMismatch, NonFinite: see ``scan_trajectory``.
        """
        return [self._scan(unit, piece) for piece in unit.pieces]

    def _scan(self, unit: Unit, piece: Piece) -> _Part:
        stored = self._buffer.stored(unit, piece)
        counts = np.zeros(BINS + 3, np.int64)
        kind = reads_as(piece.dtypes)
        if kind is None:
            found = [
                self._scanner.scan(self._convert(piece, stored, start), counts)
                for start in range(0, piece.count, SCAN_BLOCK)
            ]
        else:
            found = [self._scanner.scan([part.view(kind) for part in stored], counts)]
        grams = [gram for gram in found if gram is not None]
        if len(grams) < len(found):
            raise self._non_finite(unit, piece, stored)
        examples = list(zip(*gather(piece, stored, example_places(piece)), strict=True))
        return _Part(np.concatenate(grams), counts, self._draw(piece, stored), examples)

    def _convert(
        self, piece: Piece, stored: Sequence[NDArray[np.uint8]], start: int
    ) -> list[NDArray[np.float32]]:
        """A block of rows that the compiled loops do not read, as float32."""
        if not self._converted.size:
            self._converted = np.zeros((len(stored), SCAN_BLOCK), np.float32)
        stop = min(start + SCAN_BLOCK, piece.count)
        rows = list(self._converted[:, : stop - start])
        for data, dtype, row in zip(stored, piece.dtypes, rows, strict=True):
            itemsize = DTYPES[dtype].itemsize
            widen(data[start * itemsize : stop * itemsize], dtype, row)
        return rows

    def _draw(self, piece: Piece, stored: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        if self._reference_share is None:
            return np.zeros(BINS + 3, np.int64)
        size = max(LEAST_SAMPLE, int(piece.elements * self._reference_share))
        places = draw(piece.tensor, piece.elements, size, seed=1)
        return count_linearity(self._steps, gather(piece, stored, places)[1])

    def _non_finite(self, unit: Unit, piece: Piece, stored: Sequence[NDArray[np.uint8]]) -> NonFinite:
        inputs = self._buffer.inputs
        for k, data, dtype in zip(piece.checkpoints, stored, piece.dtypes, strict=True):
            if count_non_finite(data, dtype):
                check_blamed(unit, piece, inputs.sources, [k])
                return NonFinite(
                    f"{piece.tensor}: {inputs.called(k)} holds NaN or infinite weights; leave that "
                    "checkpoint out",
                    tensor=piece.tensor,
                    step=inputs.steps[k],
                )
        check_blamed(unit, piece, inputs.sources)
        return too_far(piece.tensor)


@lru_cache(maxsize=8)
def draw(name: str, elements: int, size: int, seed: int) -> NDArray[np.int64]:
    """Places of ``size`` elements of a tensor (all, if it has no more), in order; always the same ones."""
    generator = np.random.default_rng([seed, crc32(name.encode())])
    places = generator.choice(elements, min(size, elements), replace=False)
    return np.sort(places).astype(np.int64)


def example_places(piece: Piece) -> NDArray[np.int64]:
    """The elements of the piece's tensor whose values a scan keeps."""
    return draw(piece.tensor, piece.elements, EXAMPLES, seed=0)


def gather(
    piece: Piece, stored: Sequence[NDArray[np.uint8]], places: NDArray[np.int64]
) -> tuple[range, NDArray[np.float32]]:
    """Which of ``places`` (in order) lie in the piece, and their values, (n, K)."""
    first, stop = np.searchsorted(places, [piece.start, piece.start + piece.count])
    inside = places[first:stop] - piece.start
    values = np.zeros((len(stored), len(inside)), np.float32)
    for data, dtype, row in zip(stored, piece.dtypes, values, strict=True):
        picked = data.reshape(piece.count, -1)[inside]
        widen(picked.reshape(-1), dtype, row)
    # one weight's values side by side, as those who add them up take them
    return range(first, stop), np.ascontiguousarray(values.T)


def assemble_scan(
    trajectory: Trajectory,
    plan: ScanPlan,
    tensors: Mapping[str, TensorScan],
    reference_share: float | None,
    pins: Sequence[str] | None,
) -> Scan:
    """What was found in each tensor of a plan, as one scan.

    Args:
        tensors: by name.
        reference_share, pins: as for `scan_trajectory`.
    """
    found = [tensors[tensor.name] for tensor in plan.tensors]
    steps = trajectory.steps
    n, k = len(found), len(steps)
    return Scan(
        gram_table=GramTable(
            steps,
            tuple(tensor.name for tensor in found),
            np.array([tensor.elements for tensor in found], dtype=np.int64),
            np.array([tensor.gram for tensor in found]).reshape(n, k, k),
        ),
        series=trajectory.series,
        checkpoints=scanned_checkpoints(trajectory, plan.layouts, pins),
        counts=np.array([tensor.counts for tensor in found]).reshape(n, BINS + 3),
        random_walk=random_walk(steps),
        example_places=np.array([tensor.example_places for tensor in found]).reshape(n, EXAMPLES),
        example_values=np.array([tensor.example_values for tensor in found]).reshape(n, EXAMPLES, k),
        reference=None
        if reference_share is None
        else ReferenceSample(
            reference_share, np.array([tensor.sample_counts for tensor in found]).reshape(n, BINS + 3)
        ),
    )
