"""What a scan will do, and the memory that it and the fitting of coefficients take: nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hubextrap.engine.budget import Budget, allot, held
from hubextrap.engine.comparison import FLOATS, compare, dtype_notes, uncombinable
from hubextrap.engine.cutting import Room, cut, lay_out
from hubextrap.engine.defaults import MiB
from hubextrap.engine.findings import refuse
from hubextrap.engine.units import Unit
from hubextrap.errors import StepError
from hubextrap.scans.parts import ScannedCheckpoint
from hubextrap.scans.scan import EXAMPLES
from hubextrap.statistics.calibration import fit_memory
from hubextrap.statistics.linearity import BINS
from hubextrap.statistics.table import SCAN_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import DTypeLike

    from hubextrap.engine.budget import Buffers
    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.tensors.layout import CheckpointLayout
    from hubextrap.trajectory.checkpoint import Trajectory

COMPILER = 40 * MiB
"""What a scan's compiled loops take beside those of a merge (measured with numba 0.68)."""
SCRATCH = 3 * MiB
"""What a worker's loops and checks take beside its buffer."""
SCAN_READ_SIZE = MiB
"""Bytes of one checkpoint that a unit reads from a disk: eight of them stay in the processor's caches."""
READ_AS: dict[frozenset[str], DTypeLike] = {frozenset({"F32"}): np.float32, frozenset({"BF16"}): np.uint16}
"""What the compiled loops read as it is stored, when all checkpoints hold it so."""
_REMEDY = (
    f"store it in every checkpoint as one of {', '.join(FLOATS)}, or use a method that needs no scan, and "
    "give this tensor a rule with the method persistence"
)


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """Everything that is known before the first byte moves."""

    steps: tuple[int, ...]
    layouts: tuple[CheckpointLayout, ...]
    tensors: tuple[TensorInputs, ...]
    """Those that are scanned, in the last checkpoint's file and offset order."""
    beside: int
    """Bytes that the pass takes beside its buffers and the baseline."""
    buffers: Buffers
    notes: tuple[str, ...]
    """Facts about the inputs."""

    def within(self, budget: Budget) -> ScanPlan:
        """The same with as many workers and other memory.

        Raises:
            OutputError: as `plan_scan`.
        """
        return replace(self, buffers=_buffers(budget, len(self.steps), self.tensors, self.beside))

    def units(self, tensors: Sequence[TensorInputs]) -> Iterator[Unit]:
        """Those of some of the tensors."""
        for cuts in cut(tensors, self.buffers.unit_bytes, _room(len(self.steps))):
            pieces, reads, _ = lay_out(cuts)
            yield Unit(pieces, reads)


def plan_scan(
    steps: Sequence[int],
    layouts: Sequence[CheckpointLayout],
    *,
    tied: bool = False,
    budget: Budget | None = None,
) -> ScanPlan:
    """Plan a scan of K checkpoints. Integers and what is copied are left out; a tied pair counts once.

    Args:
        tied: the last checkpoint's tie_word_embeddings.

    Raises:
        StepError: fewer than two checkpoints.
        CheckpointMismatch: names, shapes, dtypes or tying differ.
        OutputError: memory is too small, tables included.
    """
    if len(steps) < 2:
        raise StepError(
            f"a scan compares checkpoints, and only step {steps[0]} is there; choose more steps",
            step=steps[0],
        )
    count, budget = len(steps), budget or Budget()
    entries, problems, notes = compare(steps, layouts, tied=tied)
    entries = [entry for entry in entries if entry.name not in layouts[-1].copied]
    for entry in entries:
        problems += uncombinable(entry.name, entry.inputs[-1].dtype, _REMEDY)
    refuse(problems, layouts)
    tensors = tuple(entry for entry in entries if entry.inputs[-1].dtype in FLOATS)
    converts = any(reads_as(info.dtype for info in one.inputs) is None for one in tensors)
    beside = COMPILER + scan_tables(count, len(layouts[-1].tensors)) + held(layouts, len(entries))
    beside += budget.workers * (SCRATCH + (count * SCAN_BLOCK * 4 if converts else 0))
    return ScanPlan(
        tuple(steps),
        tuple(layouts),
        tensors,
        beside,
        _buffers(budget, count, tensors, beside),
        (*notes, *dtype_notes(steps, layouts)),
    )


def reads_as(dtypes: Iterable[str]) -> DTypeLike | None:
    """What the compiled loops read a tensor as; None where it has to be made float32 first."""
    return READ_AS.get(frozenset(dtypes))


def scanned_checkpoints(
    trajectory: Trajectory,
    layouts: Sequence[CheckpointLayout],
    pins: Sequence[str] | None,
    *,
    sampled: bool = False,
) -> tuple[ScannedCheckpoint, ...]:
    """The checkpoints as a scan names them.

    Args:
        pins: what stands for each one's bytes; by default its commit or folder.
        sampled: whether more may be added to it later, so that what stands for their weights is named too.
    """
    if pins is None:
        pins = [f"{c.commit}:{c.path}" if c.repo else c.path for c in trajectory.checkpoints]
    return tuple(
        ScannedCheckpoint(
            c.step,
            c.name,
            c.repo,
            c.revision,
            c.commit,
            c.path,
            _dtypes(layout),
            pin,
            c.digest if sampled else None,
        )
        for c, layout, pin in zip(trajectory.checkpoints, layouts, pins, strict=True)
    )


def scan_tables(checkpoints: int, tensors: int) -> int:
    """Bytes of what a scan finds, which is there three times while it is put together or written."""
    found = 8 * checkpoints**2 + 2 * 8 * (BINS + 3) + EXAMPLES * (8 + 4 * checkpoints)
    return 3 * tensors * found


def fitting_memory(
    steps: Sequence[float], layouts: Sequence[CheckpointLayout], targets: Sequence[float]
) -> int:
    """Bytes that a merge whose coefficients follow from a scan takes beside one that has none."""
    return COMPILER + scan_tables(len(steps), len(layouts[-1].tensors)) + fit_memory(steps, targets)


def _buffers(budget: Budget, checkpoints: int, tensors: Sequence[TensorInputs], beside: int) -> Buffers:
    return allot(budget, tensors, _room(checkpoints), local_read_size=SCAN_READ_SIZE, beside=beside)


def _dtypes(layout: CheckpointLayout) -> str:
    return "/".join(sorted({info.dtype for info in layout.tensors.values() if "F" in info.dtype}))


def _room(checkpoints: int) -> Room:
    """A piece's figures are kept until they are added up: a unit is done, and others wait for it."""
    return Room(grain=SCAN_BLOCK, piece_bytes=4 * (8 * checkpoints**2 + 2 * 8 * (BINS + 3)))
