"""What a scan will do, and the memory that it and the fitting of coefficients take: nothing is read here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hubextrap.engine.comparison import FLOATS
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.engine.plan import REMOTE_READ_SIZE, plan_merge
from hubextrap.statistics.calibration import fit_memory
from hubextrap.statistics.elements import BLOCK
from hubextrap.statistics.linearity import BINS
from hubextrap.statistics.scan import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from hubextrap.engine.plan import MergePlan
    from hubextrap.tensors.layout import CheckpointLayout

COMPILER = 120 * MiB
"""What numba and its compiler take beside python and torch (measured with numba 0.68)."""
SCAN_READ_SIZE = MiB
"""Bytes of one checkpoint that a job reads from a disk: eight of them stay in the processor's caches."""
READ_AS: dict[frozenset[str], DTypeLike] = {frozenset({"F32"}): np.float32, frozenset({"BF16"}): np.uint16}
"""What the compiled loops read as it is stored, when all checkpoints hold it so."""


def plan_scan(
    steps: Sequence[int],
    layouts: Sequence[CheckpointLayout],
    *,
    tied: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = DEFAULT_WORKERS,
    remote: bool = False,
    read_size: int | None = None,
    afterwards: int = 0,
) -> MergePlan:
    """The jobs of a scan, see `scan_trajectory`.

    Raises:
        CheckpointMismatch: names, shapes, dtypes or tying differ.
        OutputError: memory is too small, tables included.
    """
    count = len(steps)
    rows = np.full((1, count), 1 / count)
    return plan_merge(
        steps,
        layouts,
        lambda tensor: rows,
        tied=tied,
        memory=memory,
        workers=workers,
        read_size=read_size or (REMOTE_READ_SIZE if remote else SCAN_READ_SIZE),
        grain=BLOCK,
        reserve=COMPILER
        + scan_tables(count, len(layouts[-1].tensors))
        + afterwards
        + workers * (count * BLOCK * 4 if _converts(layouts) else 0),
        write_memory=0,
        piece_bytes=piece_bytes_of(count),
    )


def scan_tables(checkpoints: int, tensors: int) -> int:
    """Bytes of what a scan finds, which is there three times while it is put together or written."""
    found = 8 * checkpoints**2 + 2 * 8 * (BINS + 3) + EXAMPLES * (8 + 4 * checkpoints)
    return 3 * tensors * found


def fitting_memory(
    steps: Sequence[int], layouts: Sequence[CheckpointLayout], targets: Sequence[float]
) -> int:
    """Bytes that a merge whose coefficients follow from a scan takes beside one that has none."""
    return COMPILER + scan_tables(len(steps), len(layouts[-1].tensors)) + fit_memory(steps, targets)


def piece_bytes_of(checkpoints: int) -> int:
    """What a piece's figures take until they are added up: a job is done, and others wait for it."""
    return 4 * (8 * checkpoints**2 + 2 * 8 * (BINS + 3))


def _converts(layouts: Sequence[CheckpointLayout]) -> bool:
    """Whether some tensor has to be made float32 before it can be scanned."""
    tables = list({id(layout.tensors): layout.tensors for layout in layouts}.values())
    stored = (
        frozenset(table[name].dtype for table in tables if name in table) for name in layouts[-1].tensors
    )
    return any(dtypes.issubset(FLOATS) and dtypes not in READ_AS for dtypes in stored)
