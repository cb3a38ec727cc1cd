"""The memory of a pass: what it may take, and how that is shared out among its workers' buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubextrap.engine.cutting import unit_minimum
from hubextrap.engine.defaults import DEFAULT_MEMORY, DEFAULT_WORKERS, MiB
from hubextrap.errors import OutputError
from hubextrap.tensors.layout import distinct_tensors
from hubextrap.tensors.weights import READERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubextrap.engine.comparison import TensorInputs
    from hubextrap.engine.cutting import Room
    from hubextrap.tensors.layout import CheckpointLayout

NO_LIMIT = 2**62
REMOTE_READ_SIZE = 8 * MiB
"""Bytes of one checkpoint that a unit reads over a network, where a request costs a round trip."""
REMOTE_READERS = 8
"""Ranges of a unit that are requested at the same time; the sources bound the requests in flight."""
BASELINE = 235 * MiB
"""What the process takes without buffers, headers and plan, counted into ``memory``: python, the Hub client
and what loads machine code are 110 MiB; the first run compiles it, which takes 100 MiB more (measured with
numba 0.68). `tensors.devices.cuda_libraries` for torch, which only other devices need."""
HELD_INFO = 550
"""Bytes of one tensor of one header, its place in tables by name included; equal headers count once."""
HELD_TENSOR, HELD_CHECKPOINT = 1200, 90_000
HELD_INPUT = 24
"""Bytes of a tensor's input in the plan: references."""
HELD_ENTRY = 75
"""Bytes of a tensor in an index, `READERS` of which are read at the same time."""
HELD_FILE = 3000
"""Bytes of one file of one checkpoint: what the folder's listing, the plan and the provenance say of it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How a pass over checkpoints may read."""

    memory: int = DEFAULT_MEMORY
    """Bytes that the process may take, python included."""
    workers: int = DEFAULT_WORKERS
    """Threads, each with a buffer of its own."""
    remote: bool = False
    """Whether some of it is read from a Hub: in longer ranges, several at a time."""
    read_size: int | None = None
    """Bytes to read from a checkpoint at once, if memory allows; None for what suits the place."""
    reserve: int = 0
    """Bytes of ``memory`` that the caller needs for something else."""
    other_pass: int = 0
    """Bytes of ``memory`` that the process needs at another time, before or after."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """A budget, shared out."""

    workers: int
    readers: int
    """Threads that read a unit's ranges at the same time, for sources where waiting dominates (a Hub); with
    0, a worker reads them one after the other."""
    unit_bytes: int
    """Size of a worker's buffer, which holds the inputs and the outputs of a unit."""
    peak_memory: int
    """Estimate of the process's peak resident memory, bytes."""
    least_memory: int
    """The smallest ``memory`` that the pass can be planned with."""

    def one_worker(self) -> Buffers:
        """The same for one thread."""
        peak = self.peak_memory - (self.workers - 1) * self.unit_bytes
        return replace(self, workers=1, peak_memory=peak)


def allot(
    budget: Budget, tensors: Sequence[TensorInputs], room: Room, *, local_read_size: int, beside: int
) -> Buffers:
    """Share out a budget.

    Args:
        local_read_size: bytes of one checkpoint to read from a disk at once.
        beside: bytes that the pass takes beside its buffers and the baseline.

    Raises:
        OutputError: memory is too small; the message says how much is needed.
    """
    workers = budget.workers
    fixed = BASELINE + budget.reserve + beside
    least = unit_minimum(tensors, room)
    streams = max((len(tensor.inputs) + len(tensor.twins) for tensor in tensors), default=0)
    least_memory = max(fixed + workers * least, budget.other_pass)
    if budget.memory < least_memory:
        # what they take in headers and plan may be most of it
        of = f" of {len(tensors):,} tensors" if len(tensors) > 1 else ""
        made = f", {room.targets} target{'s' * (room.targets > 1)}" if room.targets else ""
        raise OutputError(
            f"memory: {budget.memory / MiB:.0f} MiB are not enough for {streams} checkpoints{of}{made} "
            f"and {workers} worker{'s' * (workers > 1)}; give at least {-(-least_memory // MiB)} MiB"
        )
    read_size = budget.read_size or (REMOTE_READ_SIZE if budget.remote else local_read_size)
    share = (budget.memory - fixed) // workers
    unit_bytes = max(least, min(share, read_size * (streams + room.targets)))
    return Buffers(
        workers=workers,
        readers=REMOTE_READERS if budget.remote else 0,
        unit_bytes=unit_bytes,
        peak_memory=max(fixed + workers * unit_bytes, budget.other_pass),
        least_memory=least_memory,
    )


def held(layouts: Sequence[CheckpointLayout], tensors: int, coefficients: int = 0) -> int:
    """Bytes of headers, tables and plan, from what they took when measured.

    Args:
        coefficients: bytes of those.
    """
    count = len(layouts)
    files = sum(len(layout.shards) for layout in layouts)
    taken = sum(layout.held for layout in layouts)
    taken += distinct_tensors(layouts) * HELD_INFO + count * HELD_CHECKPOINT + files * HELD_FILE
    per_tensor = HELD_TENSOR + count * HELD_INPUT + min(count, READERS) * HELD_ENTRY
    return taken + tensors * per_tensor + coefficients
